"""The training half of Dermalyze: from HAM10000's files to a judged, exported, registered model.

For education and research; a prediction is never a diagnosis.
"""

__version__ = "0.1.0"
