"""What a record and a page say of the code, device and versions that made them."""

import pytest
import torch
from project import REPO

from pai_lib.book import chapters, pages
from pai_lib.experiments import provenance


@pytest.mark.parametrize("dirty", [True, False, None])
def test_a_record_says_whether_the_code_had_local_changes(dirty, monkeypatch):
    monkeypatch.setattr(provenance, "git_revision", lambda *folder: ("0123456789ab", dirty))
    made = provenance.run_provenance(torch.device("cpu"), "bf16", "then", [{"epoch": 1}])
    assert (made["git"], made["dirty"]) == ("0123456789ab", dirty)
    assert (made["precision"], made["started"], made["resumed"]) == ("bf16", "then", [{"epoch": 1}])
    assert made["threads"] == torch.get_num_threads()
    assert "resumed" not in provenance.run_provenance(torch.device("cpu"), "float32", "then", [])


def test_the_peak_of_a_cpu_is_that_of_the_process():
    provenance.reset_peak_memory(torch.device("cpu"))
    before = provenance.peak_memory(torch.device("cpu"))
    held = torch.ones(50_000_000)  # 200 MB
    grown = provenance.peak_memory(torch.device("cpu"))
    assert 10**7 < before < 10**12
    assert before <= grown
    assert grown > 4 * held.numel()


def page_of(chapter, **values):
    job = chapters.Job(chapters.load_chapters(REPO)[chapter], "smoke", values)
    return pages.provenance(REPO, job, 1.0)


@pytest.mark.parametrize("dirty", [True, False, None])
def test_a_page_says_whether_the_code_had_local_changes(dirty, monkeypatch):
    monkeypatch.setattr(pages, "git_revision", lambda *folder: ("0123456789ab", dirty))
    assert f"- Revision: 0123456789ab{' with local changes' if dirty else ''}\n" in page_of("evidence")


def test_a_page_shows_each_parameter_with_its_value_and_its_default():
    page = page_of("audit", sparsity=0.5)
    assert "| `sparsity` | `0.5` | `0.95` |" in page
    assert "| `epochs` | `3` | `3` |" in page
    assert "papermill notebooks/audit.ipynb out.ipynb -y '{sparsity: 0.5}'" in page
    assert " -y " not in page_of("audit")
