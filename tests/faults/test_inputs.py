"""Whatever a command is given, it works, or ends with status 2 and one sentence; it neither crashes nor hangs, and
writes nothing anywhere else."""

import collections
import pprint

import pytest
from base import Base, make_base
from grammars import annotations, checkpoints, configs, images, lines
from hypothesis import Phase, given, settings
from trying import Case, Trial

pytestmark = pytest.mark.slow

# All that is wrong is collected, so that nothing is left to shrink.
PHASES = (Phase.explicit, Phase.generate)


@pytest.fixture(scope="module")
def base(made_once):
    return Base(made_once("faults", make_base))


@pytest.fixture
def trial(base, tmp_path):
    made = Trial(tmp_path, base.root)
    yield made
    made.close()


GRAMMARS = {
    "annotations": lambda base: annotations(base.texts),
    "images": lambda base: images(base.image),
    "checkpoints": lambda base: checkpoints(base.checkpoint, base.content),
    "configs": lambda base: configs(base.entries),
    "lines": lambda base: lines(),
}


def told(case):
    """A case as it may be tried again, long files cut."""
    files = {name: file[:2000] if isinstance(file, bytes) else file for name, file in case.files.items()}
    return pprint.pformat(case._replace(files=files), width=120)


@pytest.mark.parametrize("kind", GRAMMARS)
def test_odd_input(base, trial, tmp_path, kind):
    statuses, wrong = collections.Counter(), []

    @settings(phases=PHASES)
    @given(GRAMMARS[kind](base))
    def one(case):
        outcome = trial(case)
        statuses[case.command, outcome.status] += 1
        if outcome.wrong:
            wrong.append(f"{told(case)}\n{outcome.wrong}\n{outcome.raised or outcome.error}")

    one()
    print(f"{kind}: {sum(statuses.values())} inputs, {dict(sorted(statuses.items(), key=str))}")
    assert not wrong, f"{len(wrong)} of {sum(statuses.values())}:\n" + "\n\n".join(wrong)


def test_a_trial_finds_what_is_wrong(trial, monkeypatch):
    """A crash, a hang, a file elsewhere, an exception."""
    line = ["--work-dir=@/out", "--data-path=@/data", "--device=cpu", "--config=@/config.py"]

    def outcome(text):
        return trial(Case("train", line, {"config.py": text.encode()}, checks_alone=True)).wrong

    # Not by a statement, which mmengine would take for one of a lazy config, and run nothing.
    assert "crashes" in str(outcome("__import__('ctypes').string_at(0)"))
    monkeypatch.setattr("trying.SECONDS", 5.0)
    assert "hangs" in str(outcome("while True: pass"))
    assert "changes" in str(outcome("open('../elsewhere', 'w').close()"))
    assert "writes to" in str(outcome("open('../../elsewhere', 'w').close()"))
    assert "ends with status 130" in str(outcome("raise KeyboardInterrupt"))
    assert not outcome("model = dict(")
