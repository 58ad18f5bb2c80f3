"""Settings of the service: from the environment, checked once."""

import pytest

from serving.errors import ConfigError
from serving.settings import ServiceSettings


def test_the_settings_come_from_the_environment_and_go_back_there():
    given = {
        "DERMALYZE_MODEL": "m.onnx",
        "DERMALYZE_MAX_IMAGES": "5",
        "DERMALYZE_REQUEST_SECONDS": "2.5",
        "DERMALYZE_ALLOWED_HOSTS": "a, b",
    }
    settings = ServiceSettings.from_environment(given)
    assert (settings.model, settings.max_images) == ("m.onnx", 5)
    assert (settings.request_seconds, settings.allowed_hosts) == (2.5, ("a", "b"))
    assert ServiceSettings.from_environment(settings.to_environment()) == settings
    assert "s3cret" not in repr(ServiceSettings(api_key="s3cret"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MAX_IMAGES", "0", "DERMALYZE_MAX_IMAGES must be from 1 to 1,000, got 0"),
        ("MAX_IMAGES", "many", "DERMALYZE_MAX_IMAGES must be a whole number, got 'many'"),
        (
            "REQUEST_SECONDS",
            "nan",
            "DERMALYZE_REQUEST_SECONDS must be from 0.01 to 86,400, got nan",
        ),
        (
            "MAX_PIXELS",
            "50000000",
            "DERMALYZE_MAX_PIXELS must be from 1 to 40,000,000, got 50,000,000",
        ),
    ],
)
def test_a_setting_out_of_range_is_refused(name, value, message):
    with pytest.raises(ConfigError) as caught:
        ServiceSettings.from_environment({f"DERMALYZE_{name}": value})
    assert str(caught.value) == message
