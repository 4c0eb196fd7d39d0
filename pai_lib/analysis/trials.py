"""A user's own criterion judged: the comparisons of a trial, one rule, and its words.

The comparisons are ``verdicts.Contrast``s and are decided as the paper's claims are: by paired,
two-sided t tests at 5 %, corrected for their number (Holm, 1979), from five seeds on.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

from ..experiments.spec import RunSpec
from ..pruning.criteria import CRITERIA, criterion_label
from .protocols import plain_runs
from .statistics import LEVEL, Paired, in_a_list, paired, points
from .verdicts import SEEDS, Contrast, Settings, Verdict, by_seed, judge

WITHIN = 1.0  # percentage points that count as equal to the criterion's own profile
PROFILE = "its own profile"
LOTS, PLACEBOS = ("Random", "ERK"), ("Scaled noise", "Weight noise")
RIVALS: dict[str, dict[str, Any]] = {
    "Random": {"criterion": ("random",)},
    "ERK": {"criterion": ("random",), "scope": "erk"},
    "Equal worth": {"criterion": ("random",), "scope": "equal_worth"},
    "Magnitude": {"criterion": ("magnitude",)},
    "SNIP": {"criterion": ("snip",)},
    "HP": {"criterion": ("hutchinson_pruning",)},
    "Scaled noise": {"criterion": ("scaled_noise",)},
    "Weight noise": {"criterion": ("weight_noise",)},
}
UNTESTED = "not tested yet"
WORKS = "works"


@dataclass(frozen=True)
class Judgement:
    """What a trial says of one criterion or profile at one sparsity."""

    label: str
    verdicts: Mapping[str, Verdict]  # by rival
    cut: int  # masks without a path
    seeds: int

    def told(self, word: str) -> list[str]:
        """The rivals of which the rule says so: "supported" is better than these."""
        return [name for name, verdict in self.verdicts.items() if verdict.verdict == word]

    @property
    def word(self) -> str:
        """The verdict: of the reasons against it the gravest, or that it works."""
        better, tested = self.told("supported"), set(self.verdicts) - set(self.told(UNTESTED))
        if self.seeds < SEEDS or not tested.issuperset(LOTS):
            return "not judged"
        if 2 * self.cut > self.seeds:
            return "cut"
        steps = {
            "not shown to beat random weights": LOTS,
            "not shown to beat a placebo": PLACEBOS,
            "not shown to beat its own profile": (PROFILE,),
        }
        for word, rivals in steps.items():
            if tested.intersection(rivals).difference(better):
                return word
        needed = {*PLACEBOS, *self.verdicts.keys() & {PROFILE}}  # a profile has no other
        return WORKS if needed <= tested else "not judged"

    def __str__(self) -> str:
        words = {"supported": "better than", "undecided": "no difference found from"}
        words |= {"not supported": "worse than", UNTESTED: "not compared, for want of runs, with"}
        said = [f"{words[w]} {in_a_list(self.told(w))}" for w in words if self.told(w)]
        if self.cut:
            said.insert(0, f"{self.cut} of {self.seeds} masks are cut")
        profile = self.verdicts.get(PROFILE)
        if profile and profile.equivalence < LEVEL:
            said.append(f"equal to {PROFILE} within {WITHIN:g} point")
        text = "; ".join(said)
        return f"{self.label}: {self.word}. {text[:1].upper()}{text[1:]}."


def judge_trial(frame: pd.DataFrame, base: RunSpec, key: str) -> Judgement:
    """Judge one criterion, or profile, by the records of a protocol and its own.

    Args:
        frame: rows of ``records_frame`` of one protocol at one sparsity.
        base: the protocol's.
        key: of the criterion or profile, which is known.
    """
    rule = judge(frame, contrasts_of(base, key), equivalence={PROFILE: WITHIN})
    rows = plain_runs(frame, **side(base, **way(key)))
    cut = int((rows["effective_sparsity"] == 1).sum())
    verdicts = {verdict.contrast.key: verdict for verdict in rule}
    return Judgement(label_of(key), verdicts, cut, int(rows["test_accuracy"].count()))


def contrasts_of(base: RunSpec, key: str) -> list[Contrast]:
    """What a criterion or profile is compared with, and corrected for, together."""
    rivals = dict(RIVALS)
    if key in CRITERIA:
        rivals[PROFILE] = {"criterion": (key,), "control": "shuffle"}
    treated, claim = side(base, **way(key)), f"{key} does better than {{}}."
    return [
        Contrast(name, claim.format(name), treated, side(base, **rival))
        for name, rival in rivals.items()
    ]


def way(key: str) -> dict[str, Any]:
    """How runs of a criterion prune, or of a profile, which is filled by lot."""
    profile = {"criterion": ("random",), "scope": key}
    return {"criterion": (key,), "scope": "global"} if key in CRITERIA else profile


def label_of(key: str) -> str:
    """The label of a criterion, or the name of a profile."""
    return criterion_label(key) if key in CRITERIA else key


def side(base: RunSpec, **settings: Any) -> Settings:
    """Settings of runs of a protocol."""
    return {"sparsity": base.sparsity, "warmup": base.warmup, **settings}


def parts(frame: pd.DataFrame, base: RunSpec, key: str) -> dict[str, Paired]:
    """What order in layers, profile, the very weights and the very samples are worth, in points.

    Order is the criterion minus its mask shuffled within layers; profile the shuffled mask minus
    ERK's densities; weights the criterion minus its mask on new weights; samples the criterion
    minus itself on another scoring batch.
    """

    def percent(**settings: Any) -> pd.Series:
        return 100 * by_seed(frame, side(base, **{"criterion": (key,), **settings}))

    own, shuffled = percent(), percent(control="shuffle")
    return {
        "order within layers": paired(own, shuffled),
        "profile": paired(shuffled, percent(**RIVALS["ERK"])),
        "the very weights": paired(own, percent(control="reinit")),
        "the very samples": paired(own, percent(control="resample")),
    }


def seeds_to_tell(verdict: Verdict, tests: int, power: float = 0.8) -> int | None:
    """Seeds that would tell a difference like the one seen with this power, if it is real.

    By the noncentral t distribution at the strictest level of ``tests`` comparisons; ``None`` if
    more than 1000.
    """
    differences = pd.Series(verdict.differences)
    spread = differences.std()
    if not spread > 0 or math.isnan(verdict.mean):
        return None
    effect, level = abs(verdict.mean) / spread, LEVEL / tests
    return next((n for n in range(2, 1001) if power_of(effect, n, level) >= power), None)


def power_of(effect: float, n: int, level: float) -> float:
    """Power of a two-sided paired t test for an effect in standard deviations of a difference."""
    least = stats.t.ppf(1 - level / 2, n - 1)
    return float(stats.nct.sf(least, n - 1, effect * math.sqrt(n)))


def gradients(needs: Iterable[str], probes: int, classes: int) -> float:
    """Gradients of the scoring batch that quantities cost: the prices of the chapter on cost."""
    prices = {
        "gradient": 1,
        "fisher": 1,
        "hessian_gradient": 4,
        "hutchinson": 1 + 2 * probes,
        "row_norm": 1 + 2 * probes,
        "exact": (2 * classes - 1) / 3,
    }
    return float(sum(prices.get(need, 0) for need in needs))


def comparison(judgement: Judgement) -> pd.DataFrame:
    """One row a rival: difference, 95 % interval, corrected p, the word, seeds that would tell."""
    tests = len(judgement.verdicts) - len(judgement.told(UNTESTED))
    rows = {}
    for name, verdict in judgement.verdicts.items():
        if verdict.verdict == UNTESTED:
            rows[name] = ["–", "–", verdict.n, "–", UNTESTED, "–"]
            continue
        words = {"supported": "better", "not supported": "worse"}
        interval = f"{points(verdict.low)} to {points(verdict.high)}"
        needed = seeds_to_tell(verdict, tests)
        word = words.get(verdict.verdict, "not told apart")
        told = "–" if verdict.verdict in words else f"{needed or 'over 1000'}"
        rows[name] = [points(verdict.mean), interval, verdict.n, f"{verdict.p:.2g}", word, told]
    columns = ["difference", "95 % interval", "n", "p (Holm)", "verdict", "seeds that would tell"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def calibrated(here: pd.DataFrame, recorded: pd.DataFrame) -> pd.Series:
    """Accuracy here minus that of the record of the same spec, in percentage points, by id."""
    both = here.set_index("id")["test_accuracy"] - recorded.set_index("id")["test_accuracy"]
    return 100 * both.dropna().astype(float)
