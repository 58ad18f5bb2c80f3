"""The runtime half of Dermalyze: one ONNX file in, predictions out.

Needs numpy, Pillow and onnxruntime; never imports torch or anything of the training half.
For education and research; a prediction is never a diagnosis.
"""

from serving.errors import ArtifactError as ArtifactError
from serving.errors import DermalyzeError as DermalyzeError
from serving.errors import ImageError as ImageError
