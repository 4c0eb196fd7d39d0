"""The notebooks in JupyterLab, which knows nothing of a book's roles: they read well as they are."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from .conftest import ROOT

pytestmark = pytest.mark.browser
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
ROLE = re.compile(r"\{[a-z]+(?::[a-z]+)*\}")  # as {doc} or {cite:t}, which only a build of the book resolves

RENDERED = """count => {
  const cells = [...document.querySelectorAll(".jp-MarkdownCell .jp-RenderedMarkdown")];
  return cells.length >= count && cells.every((cell) => cell.innerText.trim());
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Return the address of a JupyterLab on a copy of the notebooks, which renders every cell at once."""
    pytest.importorskip("jupyterlab", reason="pip install -c constraints.txt -e '.[browser]'")
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    settings = folder / "settings" / "@jupyterlab"
    for plugin, values in {
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false"},
    }.items():
        path = settings / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder / 'notebooks'}"]
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, cwd=folder, **quiet)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(address + "api/status").close()
                break
            except OSError:
                assert process.poll() is None, "JupyterLab does not start"
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # one by one, it waits for a kernel of each notebook
            process.kill()
            process.wait()


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_no_unresolved_role(lab, page, name):
    source = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))
    written = sum(cell["cell_type"] == "markdown" for cell in source["cells"])
    page.goto(f"{lab}lab/tree/{name}.ipynb?reset")
    page.wait_for_function(RENDERED, arg=written)
    shown = page.locator(".jp-MarkdownCell .jp-RenderedMarkdown").all_inner_texts()
    assert len(shown) == written
    unresolved = {role for text in shown for role in ROLE.findall(text)}
    assert not unresolved
