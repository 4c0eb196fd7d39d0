"""From an executed notebook to a page: heading, captions, labels, links, and how it was made."""

import platform
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
import yaml

from ..experiments.provenance import device_name, git_revision, version
from .chapters import Job, run_name
from .parameters import notebook_parameters, text_of

STORED_TAG = "nbval-check-output"  # of cells whose output is in the committed notebooks
PACKAGES = ("pai-lib", "torch", "seaborn", "papermill", "jupyter-book")
# In MyST a label, where it is defined or referred to; and the beginning of a link to a page.
LABEL = re.compile(
    r"(?:(?P<definition>\$\$ \(|:(?:name|label): |^\((?=[\w-]+\)=$))"
    r"|\{(?:numref|eq|ref)\}`(?:[^`<>]*<)?|\]\(#)"
    r"(?P<label>[\w-]+)(?=>?`|\)|$)",
    re.MULTILINE,
)
# In notebooks a reference is a plain link, which JupyterLab shows as its text; a page has roles.
REFERENCE = re.compile(r"\[([^\]]+)\]\((cite:[tp]|eq|numref|ref|term):([^)\s]+)\)")
TITLED = ("ref", "term")  # their text is the link's own
CHAPTER = re.compile(r"\[([^\]]+)\]\((?:\.\./book/)?([\w-]+)\.(?:ipynb|md)\)")
PAGE_LINK = re.compile(r"(\{doc\}`(?:[^`<>]*<)?)(?=\w)")


# --- links


def repository(root: Path) -> tuple[str, str]:
    """Address and branch of the repository, from ``_config.yml``; no address is an empty text."""
    path = root / "_config.yml"
    settings = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {}
    entry = settings.get("repository") or {}
    return (entry.get("url") or "").rstrip("/").removesuffix(".git"), entry.get("branch") or "main"


def import_lines(root: Path) -> str:
    """Return the lines by which a notebook imports this library, or says how to get it.

    Colab, known by its shell, gets it: nothing is installed on a machine of the user's own.
    """
    url, branch = repository(root)
    get = "clone the repository, run  pip install -e '.[book]'  in its folder"
    end = "raise ImportError(missing) from error"
    if url:
        install = f"pip install 'pai-lib[book] @ git+{url}@{branch}'"
        get = f"run  {install}"
        end = f'if "google.colab" not in str(get_ipython()):\n        {end}\n    %{install}'
        end += "\n    import pai_lib as pai"
    start = "try:\n    import pai_lib as pai\nexcept ImportError as error:\n    missing = "
    return f'{start}"pai_lib is missing: {get}, restart the kernel."\n    {end}\n'


def notebook_links(root: Path, source: str) -> str:
    """Return links to a notebook: to download it and, if it is on GitHub, to run it elsewhere."""
    url, branch = repository(root)
    links = f"{{download}}`{source} </{source}>`"
    if project := re.fullmatch(r"https://github\.com/([^/]+/[^/]+)", url):
        colab = f"https://colab.research.google.com/github/{project[1]}/blob/{branch}/{source}"
        place = f"{project[1]}/{quote(branch, safe='')}?urlpath=lab/tree/{source}"
        links += f"; run it on [Colab]({colab}) or [Binder](https://mybinder.org/v2/gh/{place})"
    return links


# --- how it was made


def provenance(root: Path, job: Job, seconds: float) -> str:
    """Return the section that says how a page was made and how to make it again."""
    rows = ""
    for name, parameter in notebook_parameters(job.chapter.notebook).items():
        values = [name, text_of(job.parameters[name]), text_of(parameter.default)]
        cells = [*(f"`{value}`" for value in values), parameter.help]
        rows += "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"
    on_gpu = job.parameters.get("device") != "cpu" and torch.cuda.is_available()
    revision, changed = git_revision(root)
    source = job.chapter.notebook.relative_to(root).as_posix()
    file = "../" * (1 + job.page.count("/")) + f"_sources/book/{job.page}.ipynb"
    option = f" -y {shlex.quote(text_of(job.values))}" if job.values else ""
    return f"""## How this page was made

:::{{dropdown}} Profile {job.profile}, {seconds:.1f} s: parameters, versions, how to run it again
| parameter | value here | default | meaning |
|---|---|---|---|
{rows}
- Device: {device_name("cuda" if on_gpu else "cpu")}
- Versions: Python {platform.python_version()}, {", ".join(f"{p} {version(p)}" for p in PACKAGES)}
- Revision: {revision}{" with local changes" if changed else ""}
- Notebook: <a href="{file}" download>with these values</a>, {notebook_links(root, source)}

To run it again, or with other values, give `-p name=value`:

```bash
{book_command(job)}
# or the notebook alone, without the book:
papermill {source} out.ipynb{option}
```
:::"""


def book_command(job: Job) -> str:
    """Return the command that makes a page again."""
    words = ["pai", "book", "--profile", job.profile, "--chapter", job.chapter.name]
    for name, value in job.overrides.items():
        words += ["-p", f"{name}={text_of(value)}"]
    if job.run not in (None, run_name(job.chapter, job.profile, job.overrides)):
        words += ["--name", str(job.run)]
    return shlex.join(words)


# --- from a notebook to a page


def make_page(notebook: Any, root: Path, job: Job, seconds: float) -> None:
    """Turn an executed notebook into a page of the book."""
    from nbformat.v4 import new_markdown_cell

    set_title(notebook, job)
    for holder, key in myst_texts(notebook):
        holder[key] = with_roles(holder[key]).replace(" ·", "\u00a0·")  # no line begins with a dot
    fold_parameters(notebook)
    leave_out_silent(notebook)
    keep_labels_apart(notebook, job)
    caption_figures(notebook)
    notebook.cells.append(new_markdown_cell(provenance(root, job, seconds)))


def set_title(notebook: Any, job: Job) -> None:
    """Head a notebook with its chapter's title, if that is another than its own."""
    if job.title is not None:
        first = notebook.cells[0]
        first.source = re.sub(r"\A# .*", lambda _: f"# {job.title}", first.source)


def with_roles(text: str) -> str:
    r"""Turn the references of a notebook into MyST's roles.

    >>> with_roles("[Lee (2019)](cite:t:lee2019), [equation (obd)](eq:obd), [Cost](cost.ipynb)")
    '{cite:t}`lee2019`, {eq}`obd`, {doc}`Cost <cost>`'
    """

    def role(match: re.Match[str]) -> str:
        said, name, target = match.groups()
        return f"{{{name}}}`{said} <{target}>`" if name in TITLED else f"{{{name}}}`{target}`"

    return CHAPTER.sub(r"{doc}`\1 <\2>`", REFERENCE.sub(role, text))


def fold_parameters(notebook: Any) -> None:
    """Fold the cell of parameters; hide that of the values given, which the last section shows.

    The code of a figure is named: it may stand beside that of the answer.
    """
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if figures_of(cell):
            cell.metadata.mystnb = {"code_prompt_show": "Show the code of the figure"}
        if "parameters" in tags:
            tags.append("hide-input")
            cell.metadata.mystnb = {"code_prompt_show": "Show the parameters"}
        if "injected-parameters" in tags:
            tags.append("remove-cell")


def leave_out_silent(notebook: Any) -> None:
    """Hide folded cells that are for what they show and show nothing, and sections of only such.

    They would be bars around nothing, below a heading that promises something. A cell whose output
    tests compare is for what it shows; others define what later cells use.
    """
    sections: list[list[Any]] = [[]]
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            sections.append([])
        sections[-1].append(cell)
    for place, cells in enumerate(sections):
        code = [cell for cell in cells if cell.cell_type == "code"]
        silent = [cell for cell in code if not cell.outputs]
        whole = place and code and silent == code
        for cell in cells if whole else silent:
            tags = cell.metadata.get("tags", [])
            if whole or {"hide-input", STORED_TAG} <= {*tags}:
                cell.metadata.tags = [*tags, "remove-cell"]


def keep_labels_apart(notebook: Any, job: Job) -> None:
    """Let labels begin with the page's name: they are global, and pages may share a notebook.

    Of a chapter these are the names of figures. Of a run, a page beside its chapter, they are all
    labels; and its links to pages begin at the project's root.
    """
    prefix = job.page.replace("/", "-")
    named = [figure for cell in notebook.cells for figure in figures_of(cell) if "name" in figure]
    labels = {figure.name for figure in named}
    texts = list(myst_texts(notebook))
    if job.run is not None:
        matches = [match for holder, key in texts for match in LABEL.finditer(holder[key])]
        labels |= {match["label"] for match in matches if match["definition"]}

    def with_prefix(match: re.Match[str]) -> str:
        before = match[0].removesuffix(match["label"])
        return f"{before}{prefix}-{match['label']}" if match["label"] in labels else match[0]

    for holder, key in texts:
        holder[key] = LABEL.sub(with_prefix, holder[key])
        if job.run is not None:
            holder[key] = PAGE_LINK.sub(r"\1/book/", holder[key])
    for figure in named:
        figure.name = f"{prefix}-{figure.name}"


def caption_figures(notebook: Any) -> None:
    """Move a figure's alternative text, caption and name to its cell, where MyST-NB looks for them.

    It would give them to whatever the cell shows, so that outputs beside a figure get cells of
    their own.
    """
    notebook.cells = [part for cell in notebook.cells for part in apart(cell)]
    for cell in notebook.cells:
        for info in figures_of(cell):
            figure = {key: info[key] for key in ("caption", "name") if key in info}
            cell.metadata.setdefault("mystnb", {}).update(image={"alt": info.alt}, figure=figure)


def apart(cell: Any) -> list[Any]:
    """Return a cell, and one for each of its outputs if a figure is among several."""
    from nbformat.v4 import new_code_cell

    outputs = cell.get("outputs", [])
    kept = [o for o in outputs if all("papermill.record" in k for k in o.get("data", ["text"]))]
    shown = [output for output in outputs if output not in kept]
    if len(shown) < 2 or not figures_of(cell):
        return [cell]
    cell.outputs = kept
    source, hidden = "# of the cell above", {"tags": ["remove-input"]}  # MyST-NB skips empty cells
    return [cell, *(new_code_cell(source, outputs=[out], metadata=hidden) for out in shown)]


def figures_of(cell: Any) -> list[Any]:
    """Return what a cell's outputs say about figures that have an alternative text."""
    outputs = cell.get("outputs", [])
    return [info for out in outputs for info in out.get("metadata", {}).values() if "alt" in info]


def myst_texts(notebook: Any) -> Iterator[tuple[Any, str]]:
    """Give each text in MyST by what holds it and its key there: prose, output or caption."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield cell, "source"
        for out in cell.get("outputs", []):
            for kind in out.get("data", {}):
                if kind.endswith("text/markdown"):
                    yield out.data, kind
        for figure in figures_of(cell):
            if "caption" in figure:
                yield figure, "caption"
