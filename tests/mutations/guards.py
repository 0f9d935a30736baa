"""The guards: where each stands, what takes it out, and which tests must notice.

``before`` stands once in its file; ``after`` takes its place. A test of the suite holds that every one still fits.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """One guard of the package, by what it is there for."""

    name: str
    path: str
    before: str
    after: str
    tests: tuple[str, ...]


GUARDS: tuple[Guard, ...] = (
    Guard(
        "a worker's answer has a time limit",
        "latentpg/rollout/supervised.py",
        "self.step_wait(timeout=self.timeout)",
        "self.step_wait(timeout=20.0)",
        ("tests/rollout/test_supervised.py -k named_with_its_seed",),
    ),
    Guard(
        "a worker that cannot be started has one too",
        "latentpg/rollout/supervised.py",
        "threading.Timer(self.timeout, end)",
        "threading.Timer(self.timeout + 15.0, end)",
        ("tests/rollout/test_supervised.py -k started_is_named",),
    ),
    Guard(
        "closing does not wait for a worker that hangs",
        "latentpg/rollout/supervised.py",
        "                worker.kill()\n\n        watch",
        "                pass\n\n        watch",
        ("tests/rollout/test_supervised.py -k does_not_wait",),
    ),
    Guard(
        "seeds are those of each member's own last reset",
        "latentpg/rollout/supervised.py",
        "range(len(self._seeds)) if mask is None else np.flatnonzero(mask).tolist()",
        "range(len(self._seeds))",
        ("tests/rollout/test_supervised.py -k last_reset",),
    ),
    Guard(
        "observations and rewards are finite",
        "latentpg/rollout/edge.py",
        "        if finite.all():\n",
        "        if True:\n",
        ("tests/rollout/test_collector.py",),
    ),
    Guard(
        "a reset of some members leaves the others alone",
        "latentpg/rollout/edge.py",
        "        if not unread and not moved.any():\n",
        "        if True:\n",
        ("tests/rollout",),
    ),
    Guard(
        "rows are what the policy recorded",
        "latentpg/rollout/record.py",
        "    if not change <= tolerance:\n",
        "    if False:\n",
        ("tests/rollout/test_record.py",),
    ),
    Guard(
        "a loss that is not finite moves nothing",
        "latentpg/learners/descent.py",
        "    if not math.isfinite(float(loss.detach())):",
        "    if False:",
        ("tests/learners/test_descent.py",),
    ),
    Guard(
        "nor does such a gradient",
        "latentpg/learners/descent.py",
        "        if not length < math.inf:\n",
        "        if False:\n",
        ("tests/learners/test_descent.py",),
    ),
    Guard(
        "of two losses both are checked before either moves",
        "latentpg/learners/descent.py",
        "    other.check_length(lengths[1], others)\n    one.descend(mine, lengths[0])\n",
        "    one.descend(mine, lengths[0])\n    other.check_length(lengths[1], others)\n",
        ("tests/learners/test_descent.py",),
    ),
    Guard(
        "a run goes on with the options it began with",
        "latentpg/training/folders.py",
        "    if differs:\n        raise refused_change(differs)\n",
        "    pass\n",
        ("tests/training",),
    ),
    Guard(
        "an id that imports a module needs leave from the command line",
        "latentpg/training/config.py",
        '    if ":" in env and not trusted:\n',
        "    if False:\n",
        ("tests/test_hostile_files.py tests/training/test_commands.py",),
    ),
    Guard(
        "a log that is no text is told of",
        "latentpg/training/log.py",
        "except (OSError, UnicodeDecodeError) as error",
        "except OSError as error",
        ("tests/test_hostile_files.py",),
    ),
    Guard(
        "a log nested out of measure is told of",
        "latentpg/training/log.py",
        "TypeError, AttributeError, RecursionError)",
        "TypeError, AttributeError)",
        ("tests/test_hostile_files.py",),
    ),
    Guard(
        "a second Ctrl-C ends at once",
        "latentpg/training/signals.py",
        "        if caught and number == signal.SIGINT:\n",
        "        if False:\n",
        ("tests/training/test_signals.py",),
    ),
    Guard(
        "tensors of a checkpoint have the digest they were written with",
        "latentpg/runs/loading.py",
        "        if digest_of(stream) != entry.sha256:\n",
        "        if False:\n",
        ("tests/runs",),
    ),
    Guard(
        "a checkpoint is no link",
        "latentpg/runs/loading.py",
        "    if not is_folder(path):\n",
        "    if False:\n",
        ("tests/runs",),
    ),
    Guard(
        "a category out of range is not looked up",
        "latentpg/programs/categories.py",
        "    if is_concrete() and not _inside(index, size):\n",
        "    if False:\n",
        ("tests/programs/test_categories.py",),
    ),
    Guard(
        "recorded data hold no objects",
        "latentpg/studies/archive.py",
        '    if dtype.hasobject or dtype.kind not in "fiub":\n',
        "    if False:\n",
        ("tests/studies/test_recorded.py tests/studies/test_files.py",),
    ),
)
