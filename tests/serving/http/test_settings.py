"""Settings of the service: from the environment, checked once."""

import pytest

from serving.errors import ConfigError
from serving.http.settings import ServiceSettings


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


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("lesions.example.org:443", "lesions.example.org"),
        ("https://Clinic.example.org/", "clinic.example.org"),
        ("clinic.example.org/lesions", "clinic.example.org"),
        ("::1", "[::1]"),
        ("[0:0::1]", "[::1]"),
        ("http://[::1]:8000", "[::1]"),
        ("[::1", "lesions.example.org"),
        ("[clinic]", "lesions.example.org"),
        ("[fe80::1%25eth0]", "lesions.example.org"),
        ("clinic.example.org.", "clinic.example.org"),
        ("clinic..example.org", "lesions.example.org"),
        ("m\u00fcnchen.example", "xn--mnchen-3ya.example"),
        ("10.0.0.256", "lesions.example.org"),
        ("10.1", "lesions.example.org"),
        ("*", "lesions.example.org"),
        ("*.example.org", "lesions.example.org"),
        ("", "lesions.example.org"),
        ("a b", "lesions.example.org"),
    ],
)
def test_a_host_that_no_request_can_name_is_refused(given, meant):
    with pytest.raises(ConfigError) as caught:
        ServiceSettings(allowed_hosts=("localhost", given))
    assert str(caught.value) == (
        "--allowed-host (DERMALYZE_ALLOWED_HOSTS) must be a host name without scheme, port or "
        f"path, such as {meant!r}, got {given!r}"
    )


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("https://clinic.example.org/", "https://clinic.example.org"),
        ("https://clinic.example.org/page", "https://clinic.example.org"),
        ("https://Clinic.example.org", "https://clinic.example.org"),
        ("https://clinic.example.org:443", "https://clinic.example.org"),
        ("http://localhost:80", "http://localhost"),
        ("HTTP://localhost:8080", "http://localhost:8080"),
        ("clinic.example.org", "https://clinic.example.org"),
        ("https://*.example.org", "https://lesions.example.org"),
        ("https://clinic.example.org:99999", "https://lesions.example.org"),
        ("https://user@clinic.example.org", "https://clinic.example.org"),
        ("https://clinic.example.org.", "https://clinic.example.org"),
        ("http://[0::1]:8080", "http://[::1]:8080"),
        ("https://m\u00fcnchen.example", "https://xn--mnchen-3ya.example"),
        ("//clinic.example.org", "https://lesions.example.org"),
        ("null", "https://null"),
        ("", "https://lesions.example.org"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(given, meant):
    with pytest.raises(ConfigError) as caught:
        ServiceSettings(cors_origins=(given,))
    assert str(caught.value) == (
        "--cors-origin (DERMALYZE_CORS_ORIGINS) must be scheme and host as a browser sends them, "
        f"such as {meant!r}, got {given!r}"
    )


@pytest.mark.parametrize("given", ["*,https://clinic.example.org", "https://a.example,*", "*,*"])
def test_all_pages_beside_some_is_refused(given):
    with pytest.raises(ConfigError) as caught:
        ServiceSettings.from_environment({"DERMALYZE_CORS_ORIGINS": given})
    assert str(caught.value) == (
        "--cors-origin (DERMALYZE_CORS_ORIGINS) must be '*' for all origins, or a list "
        "of origins, not both"
    )


def test_hosts_origins_and_paths_that_can_match_are_taken():
    hosts = ("localhost", "Clinic.example.org", "10.0.0.7", "[::1]", "[FE80::1]", "my_service")
    origins = ("https://clinic.example.org", "http://localhost:3000", "http://[::1]:8080")
    settings = ServiceSettings(allowed_hosts=hosts, cors_origins=origins, root_path="/a/b-c")
    assert ServiceSettings.from_environment(settings.to_environment()) == settings
    assert ServiceSettings(cors_origins=("*",), api_key="key").cors_origins == ("*",)


@pytest.mark.parametrize(
    "path", ["/", "lesions", "/lesions/", "https://x/lesions", "/a//b", "/a?b"]
)
def test_a_root_path_of_another_form_is_refused(path):
    with pytest.raises(ConfigError) as caught:
        ServiceSettings(root_path=path)
    assert str(caught.value) == (
        "--root-path (DERMALYZE_ROOT_PATH) must be a path that begins with / and does not end "
        f"with it, such as '/lesions', got {path!r}"
    )


@pytest.mark.parametrize(
    ("name", "value"), [("ALLOWED_HOSTS", ","), ("CORS_ORIGINS", "http://a,"), ("API_KEY", " ")]
)
def test_a_variable_that_was_meant_to_keep_others_out_does_not_let_them_in(name, value):
    with pytest.raises(ConfigError):
        ServiceSettings.from_environment({f"DERMALYZE_{name}": value})
