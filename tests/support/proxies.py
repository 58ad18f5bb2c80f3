"""Real nginx in front of our service, configured by the text of docs/deploying.md."""

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from servers import free_port, running

DOCUMENT = Path(__file__).parents[2] / "docs" / "deploying.md"
_NGINX = """
daemon off;
error_log stderr warn;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {example}
}}
"""


def examples():
    """Return the nginx blocks of the document: the whole one, and the location under a path."""
    whole, under_a_path = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return whole, under_a_path


def replaced(text, old, new):
    """Replace what must be there once."""
    assert text.count(old) == 1, (old, text)
    return text.replace(old, new)


@contextlib.contextmanager
def nginx(folder, example, port):
    """Run nginx before the service at `port`; yield its own port, which speaks HTTPS."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "no nginx; install the package nginx"
    own = free_port()
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    subprocess.run(
        [*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    for old, new in (
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{port};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{own} ssl;"),
        ("/etc/ssl/lesions.pem", str(certificate)),
        ("/etc/ssl/lesions.key", str(key)),
    ):
        example = replaced(example, old, new)
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, example=example))
    command = [program, "-p", str(folder), "-c", str(configuration), "-e", "stderr"]
    log = folder / "nginx.log"
    with running(command, health=("127.0.0.1", own), cwd=folder, env=dict(os.environ), log=log):
        yield own
