"""`pai trial`: the runs of a user's own criterion, the words about it, and its page."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from ..analysis.trials import judge_trial
from ..experiments.campaign import show_plan
from ..experiments.records import Store, default_results, records_frame
from ..experiments.sweep import SweepOptions, sweep
from ..experiments.trial import Protocol, check_trial, read_protocol, trial_specs, with_campaigns
from ..files import write_whole
from ..pruning.own import OwnFile, known
from ..training.device import resolve_device
from .building import build_book

CALIBRATION = "calibration"  # folder of the committed runs that are done again


def put_on_trial(
    file: OwnFile,
    name: str,
    sparsities: Sequence[float],
    folder: Path,
    *,
    dry_run: bool = False,
    **options: Unpack[SweepOptions],
) -> Counter[str]:
    """Do the runs of a trial that have no record yet, judge them, and make the page.

    Args:
        file: of the user.
        name: of a file in ``campaigns/``.
        sparsities: fractions removed, each a trial of its own.
        folder: of all trials; this one's is named by the digest of the file's text.
        dry_run: list the runs only.
        **options: those of ``sweep``; the budget is that of all runs together.

    Returns:
        The counts of ``sweep``.

    Raises:
        ValueError: before any training, for what ``known``, ``read_protocol`` and ``check_trial``
            refuse.
    """
    if not sparsities or len({*sparsities}) < len(sparsities):
        raise ValueError(f"sparsity={list(sparsities)}: give one or more, each once.")
    begun, budget = time.monotonic(), options.get("budget")
    committed = Store(with_campaigns(default_results()))
    store = Store(folder / file.title)
    with known(file) as own:
        protocols = [read_protocol(name, sparsity) for sparsity in sparsities]
        recorded = {protocol: protocol.records(committed) for protocol in protocols}
        for protocol in protocols:
            check_trial(protocol, own, recorded[protocol])
        specs = [spec for protocol in protocols for spec in trial_specs(protocol, own)]
        basis = [record for protocol in protocols for record in recorded[protocol]]
        again, calibration = protocols[0].calibration(committed), Store(folder / CALIBRATION)
        if dry_run:
            device, retry = resolve_device(options.get("device")), options.get("retry_failed")
            show_plan(again, calibration, device, bool(retry), basis)
            show_plan(specs, store, device, bool(retry), basis)
            return Counter()
    write_whole(store.root / Path(file.name).name, file.text.encode())
    counts = sweep(again, calibration, **options)
    if counts["interrupted"]:
        return counts
    if budget is not None:
        options["budget"] = max(1e-3, begun + budget - time.monotonic())
    with known(file) as own:
        counts = sweep(specs, store, basis=basis, **options)
        for protocol in protocols:
            frame = records_frame([*recorded[protocol], *protocol.records(store)])
            for key in own.keys:
                print(judge_trial(frame, protocol.base, key))
    if counts["left"]:
        print("The same command goes on, and makes the page when all runs are recorded.")
    elif (committed.root.parent / "notebooks").is_dir():  # not where a wheel brought the records
        for protocol in protocols:
            make_page_of(protocol, store, Path(file.name).name)
    else:
        print("There is no page: only a clone of the project has the notebook that makes it.")
    return counts


def make_page_of(protocol: Protocol, store: Store, name: str) -> None:
    """Execute the chapter's notebook for a trial, to a page beside the chapters."""
    run = f"{store.root.name}-{protocol.name}-{protocol.base.sparsity:g}"
    run = re.sub(r"[^A-Za-z0-9_.+-]+", "-", run)[-100:].lstrip("_.+-")  # its digest tells it apart
    pairs = [
        f"file={store.root.resolve() / name}",
        f"records={store.root.resolve()}",
        f"protocol={protocol.name}",
        f"sparsity={protocol.base.sparsity}",
    ]
    root = with_campaigns(default_results()).parent
    build_book(root, names=["trial"], pairs=pairs, html=False, run=run)
    print(f"The page is {root / 'book' / 'runs' / run}.ipynb; pai book shows it with the others.")
