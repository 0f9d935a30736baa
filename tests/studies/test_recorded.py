"""Rows and policies of the user's own: what is read, what is refused and how, and which reference is chosen."""

import io
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces
from torch import nn

from latentpg.errors import StudyError
from latentpg.estimators import Exact, Quadrature
from latentpg.numerics.rng import seeded
from latentpg.oracles import LinearGaussianPolicy
from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy
from latentpg.programs import LatentPolicy, MultiBernoulli, Span, act, log_joint
from latentpg.studies.archive import read_archive
from latentpg.studies.problem import Source
from latentpg.studies.recorded import RecordedRows
from latentpg.studies.references import MAX_POINTS, find_reference, reference_of
from latentpg.studies.toys import RandomToys, SpanSoftmaxPolicy
from latentpg.studies.user_policy import load_policy

POLICY = """
    import torch
    from gymnasium import spaces
    from latentpg.oracles import LinearGaussianPolicy, TabularLatentPolicy
    from latentpg.policies import MixturePolicy
    from latentpg.studies.toys import SpanSoftmaxPolicy

    def make_policy():
        return MixturePolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), num_components=3, hidden=(4,))

    def make_gaussian():
        return LinearGaussianPolicy.random(num_states=4, latent_size=2, action_size=1)

    def make_span():
        return SpanSoftmaxPolicy(torch.randn(4, 2), torch.randn(4, 3, 2, 2))

    class Tables(TabularLatentPolicy):
        def __init__(self):
            super().__init__(torch.zeros(4, 3), torch.zeros(4, 3, 2))

    policy = Tables()

    class OtherSites(Tables):
        def guide(self, obs, action):
            import pyro
            pyro.sample("y", pyro.distributions.Categorical(logits=self.guide_logits[obs, action]))

    class Breaks(Tables):
        def model(self, obs, action=None):
            raise KeyError("weights")

    def needs_an_argument(space):
        return policy

    def fails():
        raise RuntimeError("no weights here")

    def leaves():
        raise SystemExit(3)

    number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(POLICY))
    return path


def rows_of(policy: LatentPolicy, num_rows: int = 6) -> dict[str, np.ndarray]:
    """Act on a few states of a tabular policy and record what there is."""
    obs = torch.arange(num_rows) % 4
    with seeded(1):
        acted = act(policy, obs)
    return {
        "obs": obs.numpy(),
        "action": acted.action.numpy(),
        "z": acted.latents["z"].numpy(),
        "log_joint": acted.log_joint.numpy(),
    }


@pytest.fixture
def arrays(file: Path) -> dict[str, np.ndarray]:
    return rows_of(load_policy(f"{file}:policy"))


def source(file: Path, arrays: dict[str, np.ndarray], name: str = "policy") -> RecordedRows:
    path = file.parent / "rows.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return RecordedRows(path=str(path), policy=f"{file}:{name}")


def test_rows_and_latents_are_those_of_the_file(file: Path, arrays: dict[str, np.ndarray]) -> None:
    found = source(file, arrays)
    problem = found.build(0)
    assert isinstance(found, Source) and found.describe() == "rows of rows.npz, policy mine.py:policy"
    assert isinstance(problem.obs, torch.Tensor) and problem.latents is not None
    assert torch.equal(problem.obs, torch.from_numpy(arrays["obs"]))
    assert torch.equal(problem.action, torch.from_numpy(arrays["action"]))
    assert list(problem.latents) == ["z"] and torch.equal(problem.latents["z"], torch.from_numpy(arrays["z"]))
    assert problem.exact == Exact() and problem.redraw is not None and problem.redraw()["z"].shape == (6,)
    assert problem.facts["rows"] == 6 and problem.facts["reference"] == "enumeration of 3 joint latents"
    assert problem.facts["largest change of log p(z, a | s) from acting to scoring (nats)"] == 0
    assert all(len(str(problem.facts[f"sha256 of the {what}"])) == 64 for what in ("rows", "policy"))


def test_rows_without_latents_have_none(file: Path, arrays: dict[str, np.ndarray]) -> None:
    problem = source(file, {name: arrays[name] for name in ("obs", "action")}).build(0)
    assert problem.latents is None and problem.exact == Exact()


def test_the_policy_is_made_on_the_seed_and_floats_come_in_its_type(file: Path) -> None:
    with seeded(2):
        obs = torch.rand(5, 2, dtype=torch.float64).numpy()
    found = source(file, {"obs": obs, "action": np.zeros(5, dtype=np.uint8)}, "make_policy")
    first, again, other = found.build(0), found.build(0), found.build(1)
    assert isinstance(first.obs, torch.Tensor) and first.obs.dtype == torch.float32
    assert first.action.dtype == torch.int64

    def table(policy: LatentPolicy) -> torch.Tensor:
        return policy.prior_parameters()[0]

    assert torch.equal(table(first.policy), table(again.policy))
    assert not torch.equal(table(first.policy), table(other.policy))
    assert first.policy is not again.policy


def test_rows_of_several_steps_come_with_a_mask(file: Path) -> None:
    spans = RandomToys(num_rows=4, num_latents=2, num_actions=2, span=3).build(0)
    assert isinstance(spans.obs, Span)
    recorded = {"obs": spans.obs.obs.numpy(), "mask": spans.obs.mask.numpy(), "action": spans.action.numpy()}
    problem = source(file, recorded, "make_span").build(0)
    assert isinstance(problem.obs, Span) and isinstance(problem.policy, SpanSoftmaxPolicy)
    assert torch.equal(problem.obs.mask, spans.obs.mask) and torch.equal(problem.obs.obs, spans.obs.obs)
    with pytest.raises(StudyError, match="first step in row 2"):
        source(file, {**recorded, "mask": np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1]])}, "make_span").build(0)
    with pytest.raises(StudyError, match=r"mask \[4, 2\]"):
        source(file, {**recorded, "mask": np.ones((4, 2))}, "make_span").build(0)


def test_big_endian_fortran_and_half_arrays_are_read(tmp_path: Path) -> None:
    matrix = np.asfortranarray(np.arange(6.0).reshape(2, 3)).astype(">f8")
    path = tmp_path / "x.npz"
    np.savez(path, a=matrix, b=np.array([1, 2], dtype=">i2"), c=np.array([0.5], dtype=np.float16), d=np.array([True]))
    found = read_archive(path)
    assert torch.equal(found["a"], torch.arange(6.0, dtype=torch.float64).reshape(2, 3))
    assert torch.equal(found["b"], torch.tensor([1, 2]))
    assert torch.equal(found["c"], torch.tensor([0.5])) and torch.equal(found["d"], torch.tensor([True]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"action": None}, "no array `action`"),
        ({"action": np.zeros(5, dtype=np.int64)}, r"different lengths[\s\S]*`action` \[5\]"),
        ({"action": np.int64(1)}, r"different lengths"),
        (
            {"log_joint": np.array([0, 0, np.nan, 0, np.inf, 0])},
            r"`log_joint` has NaN[\s\S]*2 of 6 rows, first in row 2",
        ),
        ({"z": np.array([None] * 6)}, r"`z` holds objects"),
        ({"obs": np.array(["a"] * 6)}, r"`obs` holds no numbers"),
        ({"z": np.full(6, 2**63, dtype=np.uint64)}, "does not fit into int64"),
        ({"y": np.zeros(6, dtype=np.int64)}, r"not the policy's[\s\S]*`z`, or none[\s\S]*`z`, `y`"),
        ({"z": None, "mode": np.zeros(6, dtype=np.int64)}, r"not the policy's[\s\S]*`mode`"),
        ({"z": np.zeros((6, 2), dtype=np.int64)}, r"latent `z` has another shape"),
        ({"log_joint": np.zeros(6)}, "not what it was when the rows were recorded"),
        ({"obs": np.full(6, 9)}, "does not run on the rows"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else None,
)
def test_bad_rows_are_refused_and_named(
    file: Path, arrays: dict[str, np.ndarray], change: dict[str, np.ndarray | None], told: str
) -> None:
    changed = {name: value for name, value in {**arrays, **change}.items() if value is not None}
    with pytest.raises(StudyError, match=told):
        source(file, changed).build(0)


def test_an_empty_archive_and_empty_arrays_are_refused(file: Path) -> None:
    with pytest.raises(StudyError, match=r"`obs` and `action`[\s\S]*an empty archive"):
        source(file, {}).build(0)
    with pytest.raises(StudyError, match="no rows"):
        source(file, {"obs": np.zeros((0, 2)), "action": np.zeros(0)}).build(0)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as found:
        for name, data in members.items():
            found.writestr(name, data)
    return path


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = archive(tmp_path / "bomb.npz", {"obs.npy": npy(np.zeros(10**6)), "action.npy": npy(np.zeros(10**6))})
    assert bomb.stat().st_size < 20_000
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(StudyError, match=r"too large when unpacked[\s\S]*16,000,256 bytes"):
        read_archive(bomb, max_bytes=15_000_000)


def test_compression_that_cannot_be_stopped_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_LZMA) as found:
        found.writestr("obs.npy", npy(np.zeros(10)))
    with pytest.raises(StudyError, match="stored or deflated"):
        read_archive(tmp_path / "lzma.npz")


def test_a_header_that_promises_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    path = archive(tmp_path / "lie.npz", {"obs.npy": header.getvalue() + bytes(80)})
    with pytest.raises(StudyError, match="not as large as its header says"):
        read_archive(path)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    whole = archive(tmp_path / "whole.npz", {"obs.npy": npy(np.arange(1000.0))}).read_bytes()
    cases = {
        "text.npz": (b"obs,action\n", "cannot be read"),
        "cut.npz": (whole[: len(whole) // 2], "cannot be read"),
        "flipped.npz": (whole[:100] + bytes([whole[100] ^ 255]) + whole[101:], "cannot be read|not a numpy array"),
    }
    for name, (data, told) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(StudyError, match=told):
            read_archive(tmp_path / name)
    with pytest.raises(StudyError, match="distinct names"):
        read_archive(archive(tmp_path / "other.npz", {"notes.txt": b"x"}))
    with pytest.raises(StudyError, match="`obs` is not a numpy array"):
        read_archive(archive(tmp_path / "fake.npz", {"obs.npy": b"no header at all, but long enough"}))
    with pytest.raises(StudyError, match="no such file"):
        read_archive(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("polcy", "no `polcy`[\\s\\S]*did you mean policy"),
        ("number", "not a policy[\\s\\S]*int without model, guide"),
        ("needs_an_argument", "cannot be called without arguments"),
        ("fails", "RuntimeError: no weights here, .*mine.py line"),
        ("leaves", "SystemExit: 3"),
        ("OtherSites", "different latents[\\s\\S]*`z`[\\s\\S]*`y`"),
        ("Breaks", "does not run on the rows[\\s\\S]*KeyError: 'weights'"),
    ],
)
def test_a_bad_policy_is_refused_and_told_why(file: Path, arrays: dict[str, np.ndarray], name: str, told: str) -> None:
    with pytest.raises(StudyError, match=told):
        source(file, arrays, name).build(0)


def test_bad_files_of_policies_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import torch\nimport there_is_no_such_module\n")
    with pytest.raises(StudyError, match=r"executing .* failed[\s\S]*ModuleNotFoundError.*line 2"):
        load_policy(f"{broken}:policy")
    broken.write_text("def (:\n")
    with pytest.raises(StudyError, match="SyntaxError"):
        load_policy(f"{broken}:policy")
    with pytest.raises(StudyError, match="no such file"):
        load_policy(f"{tmp_path / 'missing.py'}:policy")
    for named in ("mine.py", "mine:policy", "mine.py:", "mine.py:a b"):
        with pytest.raises(StudyError, match=r"path/to/file.py:NAME"):
            load_policy(named)


def test_a_class_is_called_and_neighbours_can_be_imported(file: Path) -> None:
    assert isinstance(load_policy(f"{file}:Tables"), LatentPolicy)
    (file.parent / "neighbour_of_mine.py").write_text("SIZE = 5\n")
    using = file.parent / "using.py"
    using.write_text(
        "import torch\nfrom neighbour_of_mine import SIZE\nfrom latentpg.oracles import TabularLatentPolicy\n"
        "policy = TabularLatentPolicy(torch.zeros(1, SIZE), torch.zeros(1, SIZE, 2))\n"
    )
    policy = load_policy(f"{using}:policy")
    assert policy.prior_parameters()[0].shape == (1, 5)


def test_one_gaussian_policy_is_integrated_and_agrees_with_its_closed_form() -> None:
    with seeded(0):
        policy = LinearGaussianPolicy.random(num_states=4, latent_size=2, action_size=1)
        obs = torch.arange(4)
        action = act(policy, obs).action
        with torch.no_grad():  # so that few nodes settle
            posterior = policy.posterior(obs, action)
            policy.guide_log_scale.copy_(posterior.variance.sqrt().log())
            policy.guide_bias.copy_(posterior.mean - (policy.guide_weight[obs] @ action.unsqueeze(-1)).squeeze(-1))
        exact, redraw = reference_of(policy, obs, action)
    assert isinstance(exact, Quadrature) and redraw is None
    found = exact.estimate(policy, obs, action, exact.propose(policy, obs, action)).log_prob
    torch.testing.assert_close(found, policy.log_pi(obs, action), rtol=0, atol=1e-5)


def test_where_quadrature_does_not_settle_there_is_no_reference() -> None:
    with seeded(0):
        policy = LinearGaussianPolicy.random(num_states=2, latent_size=1, action_size=1)
    with torch.no_grad():
        policy.guide_bias.fill_(100.0)
    obs, action = torch.arange(2), torch.zeros(2, 1, dtype=torch.float64)
    found = find_reference(policy, obs, action)
    assert found.exact is None and found.redraw is None and "do not settle" in found.reason
    assert reference_of(policy, obs, action) == (None, None)


@pytest.mark.parametrize(
    ("size", "rows", "told"),
    [
        (4, 2, "none: too many Gaussian dimensions for a grid"),
        (3, 4000, "none: quadrature in 3 dimensions needs too many"),
    ],
)
def test_too_many_dimensions_or_points_leave_no_reference(size: int, rows: int, told: str) -> None:
    policy = GaussianPolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), latent_size=size, hidden=(4,))
    found = find_reference(policy, torch.zeros(rows, 2), torch.zeros(rows, dtype=torch.int64))
    assert found.exact is None and found.redraw is None and found.reason.startswith(told)


def test_an_enumerable_latent_of_too_many_values_is_not_enumerated() -> None:
    policy = _Coins(60)
    found = find_reference(policy, torch.zeros(2, 1), torch.zeros(2))
    assert 2**60 > MAX_POINTS and found.exact is None and "too many to enumerate" in found.reason
    assert find_reference(_Coins(3), torch.zeros(2, 1), torch.zeros(2)).exact == Exact()


class _Coins(nn.Module):
    """As many coins as asked for, and an action that is their sum in noise."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(size))

    def model(self, obs: torch.Tensor, action: torch.Tensor | None = None) -> None:
        z = pyro.sample("z", MultiBernoulli(self.logits.expand(len(obs), -1)))
        pyro.sample("action", dist.Normal(z.sum(-1), 1.0), obs=action)

    def guide(self, obs: torch.Tensor, action: torch.Tensor | None) -> None:
        pyro.sample("z", MultiBernoulli(self.logits.expand(len(obs), -1)))

    def prior_parameters(self) -> list[nn.Parameter]:
        return [self.logits]

    def decoder_parameters(self) -> list[nn.Parameter]:
        return []

    def guide_parameters(self) -> list[nn.Parameter]:
        return []


def test_discrete_and_gaussian_latents_together_are_integrated() -> None:
    with seeded(0):
        policy = TwoLevelPolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), num_modes=2, style_size=1, hidden=(4,))
        obs, action = torch.rand(3, 2), torch.tensor([0, 1, 1])
        exact, redraw = reference_of(policy, obs, action)
    assert isinstance(exact, Quadrature) and redraw is None


def test_the_reference_of_transitions_of_a_mixture_is_enumeration() -> None:
    with seeded(0):
        policy = MixturePolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), num_components=3, hidden=(4,))
        obs = torch.rand(3, 2)
        action = act(policy, obs).action
        exact, redraw = reference_of(policy, obs, action)
        assert exact == Exact() and redraw is not None
        latents = redraw()
    assert [value.shape for value in latents.values()] == [(3,)]
    assert bool(torch.isfinite(log_joint(policy, obs, action, {k: v[None] for k, v in latents.items()})).all())
