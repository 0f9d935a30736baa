"""Feature maps against their formulas, written out."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.values import (
    FEATURES,
    BinaryFeatures,
    Features,
    Fourier,
    GaussianRBF,
    GridCells,
    Identity,
    Polynomial,
    Ranges,
    TileCoding,
    make_features,
)

UNIT = Ranges((0.0,), (1.0,))
SQUARE = Ranges((0.0, 0.0), (1.0, 1.0))


def points(dimensions: int, rows: int = 40) -> Tensor:
    """Points in and somewhat outside of the unit cube."""
    return torch.rand(rows, dimensions, dtype=torch.float64) * 1.4 - 0.2


def cube(dimensions: int) -> Ranges:
    return Ranges((0.0,) * dimensions, (1.0,) * dimensions)


MAPS: dict[str, Callable[[Ranges], Features]] = {
    "grid": lambda ranges: GridCells(ranges, cells=3),
    "tiles": lambda ranges: TileCoding(ranges, tilings=4, tiles=2),
    "rbf": lambda ranges: GaussianRBF(ranges, centres=3),
    "fourier": lambda ranges: Fourier(ranges, order=2),
    "fourier, uncoupled": lambda ranges: Fourier(ranges, order=3, coupling=1),
    "polynomial": lambda ranges: Polynomial(ranges, degree=2),
    "identity": lambda ranges: Identity(ranges.size),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(dimensions=st.integers(1, 3))
def test_every_map_gives_its_number_of_features_in_the_dtype_of_the_observation(
    name: str, dtype: torch.dtype, dimensions: int
) -> None:
    features = MAPS[name](cube(dimensions))
    phi = features(points(dimensions, rows=5).to(dtype))
    assert features.in_features == dimensions
    assert phi.shape == (5, features.out_features) and phi.dtype == dtype
    assert isinstance(features, Features)
    assert features(torch.zeros(0, dimensions)).shape == (0, features.out_features)


@pytest.mark.parametrize("name", [name for name in MAPS if name != "identity"])
def test_outside_of_its_ranges_a_map_is_what_it_is_at_their_edge(name: str) -> None:
    features, obs = MAPS[name](Ranges((-1.0, 2.0), (1.0, 6.0))), torch.tensor([[-5.0, 3.0], [0.3, 70.0]])
    assert torch.equal(features(obs), features(torch.tensor([[-1.0, 3.0], [0.3, 6.0]])))


@pytest.mark.parametrize("name", MAPS)
def test_a_map_says_how_it_is_made_and_equal_ones_are_equal(name: str) -> None:
    one, two = MAPS[name](SQUARE), MAPS[name](SQUARE)
    assert one == two and hash(one) == hash(two)
    assert eval(repr(one)) == one


# --- cells ------------------------------------------------------------------------------------------------------------


def test_grid_cells_count_in_reading_order_with_cells_of_their_own_in_each_dimension() -> None:
    grid = GridCells(SQUARE, cells=(2, 3))
    obs = torch.tensor([[0.1, 0.1], [0.1, 0.5], [0.1, 0.9], [0.6, 0.0], [0.5, 0.34], [1.0, 1.0]])
    assert grid.out_features == 6
    assert grid.active(obs).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_tiles_are_shifted_by_the_odd_displacement_vector() -> None:
    """J=4 tilings of one tile in the unit square: tiling j is shifted by (j, 3j mod 4) quarters.

    At (0.3, 0.6) the sums are (.3, .6), (.55, 1.35), (.8, 1.1), (1.05, .85), so the tiles are (0, 0), (0, 1), (0, 1),
    (1, 0) of two in each direction: numbers 0, 1, 1, 2 of four, with 4 more for each tiling before.
    """
    tiles = TileCoding(SQUARE, tilings=4, tiles=1)
    assert tiles.out_features == 16
    assert tiles.active(torch.tensor([[0.3, 0.6]])).tolist() == [[0, 4 + 1, 8 + 1, 12 + 2]]


@given(dimensions=st.integers(1, 3), tilings=st.integers(1, 5), tiles=st.integers(1, 4))
def test_one_tile_of_each_tiling_is_on(dimensions: int, tilings: int, tiles: int) -> None:
    coding = TileCoding(cube(dimensions), tilings=tilings, tiles=tiles)
    phi = coding(torch.cat([points(dimensions), torch.ones(1, dimensions), torch.zeros(1, dimensions)]))
    by_tiling = phi.reshape(len(phi), tilings, -1)
    assert set(phi.unique().tolist()) <= {0.0, 1.0}
    assert bool((by_tiling.sum(-1) == 1.0).all())


def test_tilings_resolve_more_finely_than_a_tile() -> None:
    """With 8 tilings of 2 tiles on a line, points a sixteenth apart differ in exactly one tile."""
    coding = TileCoding(UNIT, tilings=8, tiles=2)
    phi = coding(torch.arange(0.5 / 16, 1.0, 1 / 16)[:, None])
    assert (phi[1:] != phi[:-1]).any(-1).all()
    assert ((phi[1:] * phi[:-1]).sum(-1) == 7.0).all()


@pytest.mark.parametrize("name", ["grid", "tiles"])
def test_the_active_places_are_the_ones_of_the_row(name: str) -> None:
    features = MAPS[name](SQUARE)
    assert isinstance(features, BinaryFeatures)
    obs = points(2)
    expected = torch.nn.functional.one_hot(features.active(obs), features.out_features).sum(1)
    assert torch.equal(features(obs), expected.double())


# --- bases ------------------------------------------------------------------------------------------------------------


def vectors(dimensions: int, highest: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(highest + 1), repeat=dimensions))


@given(dimensions=st.integers(1, 3), order=st.integers(1, 3))
def test_fourier_is_a_cosine_for_every_vector_of_integers(dimensions: int, order: int) -> None:
    basis, u = Fourier(cube(dimensions), order=order), points(dimensions).clamp(0.0, 1.0)
    found = {
        tuple(int(entry) for entry in c): phi for c, phi in zip(basis.coefficients.tolist(), basis(u).T, strict=True)
    }
    assert sorted(found) == vectors(dimensions, order) and basis.out_features == (order + 1) ** dimensions
    for c, phi in found.items():
        expected = [math.cos(math.pi * sum(a * b for a, b in zip(c, row, strict=True))) for row in u.tolist()]
        assert phi.tolist() == pytest.approx(expected, abs=1e-12)


def test_fourier_is_orthogonal_on_its_range() -> None:
    """The midpoint rule with M points is exact for cosines of up to M half-waves: norms 1, 1/2, 1/2."""
    middle = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    phi = Fourier(Ranges((0.0,), (2.0,)), order=2)(2.0 * middle[:, None])
    assert torch.allclose(phi.T @ phi / 32, torch.diag(torch.tensor([1.0, 0.5, 0.5]).double()), atol=1e-14)


def test_fourier_step_scales_are_one_over_the_length_and_1_for_the_constant() -> None:
    basis = Fourier(SQUARE, order=2)
    for c, scale in zip(basis.coefficients.tolist(), basis.step_scales.tolist(), strict=True):
        assert scale == pytest.approx(1.0 / math.hypot(*c) if any(c) else 1.0)


def test_coupling_limits_the_dimensions_of_a_product() -> None:
    full, pairs, single = (Fourier(cube(3), order=2, coupling=most) for most in (None, 2, 1))
    assert (full.out_features, pairs.out_features, single.out_features) == (27, 27 - 8, 1 + 3 * 2)
    for basis, most in ((pairs, 2), (single, 1)):
        assert int((basis.coefficients != 0).sum(-1).max()) == most
        assert len({tuple(row) for row in basis.coefficients.tolist()}) == len(basis.coefficients) == basis.out_features


@given(dimensions=st.integers(1, 3), degree=st.integers(1, 3))
def test_polynomial_is_a_product_of_powers_for_every_vector_of_integers(dimensions: int, degree: int) -> None:
    basis, u = Polynomial(cube(dimensions), degree=degree), points(dimensions).clamp(0.0, 1.0)
    found = {tuple(int(entry) for entry in c): phi for c, phi in zip(basis.exponents.tolist(), basis(u).T, strict=True)}
    assert sorted(found) == vectors(dimensions, degree)
    for c, phi in found.items():
        expected = [math.prod(b**a for a, b in zip(c, row, strict=True)) for row in u.tolist()]
        assert phi.tolist() == pytest.approx(expected, abs=1e-12)


def test_bumps_are_gaussians_around_a_lattice_and_the_last_is_1() -> None:
    basis, u = GaussianRBF(SQUARE, centres=(2, 3), width=0.7), points(2).clamp(0.0, 1.0)
    centres = list(itertools.product([0.0, 1.0], [0.0, 0.5, 1.0]))  # spacings 1 and 1/2
    for row, phi in zip(u.tolist(), basis(u).tolist(), strict=True):
        distances = [((row[0] - a) / 0.7) ** 2 + ((row[1] - b) / 0.35) ** 2 for a, b in centres]
        assert phi == pytest.approx([*(math.exp(-0.5 * distance) for distance in distances), 1.0], abs=1e-12)


# --- by name, and what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEATURES)
def test_made_by_name_for_a_box(name: str) -> None:
    features = make_features(name, spaces.Box(-1.0, 1.0, (2,)), resolution=3)
    expected = {
        "grid-cells": GridCells(Ranges((-1.0,) * 2, (1.0,) * 2), cells=3),
        "tile-coding": TileCoding(Ranges((-1.0,) * 2, (1.0,) * 2), tiles=3),
        "rbf": GaussianRBF(Ranges((-1.0,) * 2, (1.0,) * 2), centres=3),
        "fourier": Fourier(Ranges((-1.0,) * 2, (1.0,) * 2), order=3),
        "polynomial": Polynomial(Ranges((-1.0,) * 2, (1.0,) * 2), degree=3),
    }
    assert features == expected[name]


def test_made_with_ranges_of_ones_own() -> None:
    space = spaces.Box(-float("inf"), float("inf"), (1,))
    assert make_features("fourier", space, resolution=2, low=(-2,), high=(3,)) == Fourier(Ranges((-2,), (3,)), order=2)
    with pytest.raises(OptionError, match=r"dimensions \[0\] of the space have no finite range"):
        make_features("fourier", space, resolution=2)


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(OptionError, match=r"unknown features[\s\S]*did you mean fourier\?"):
        make_features("furier", spaces.Box(-1.0, 1.0, (2,)), resolution=3)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: GridCells(UNIT, cells=0), r"GridCells\(\): `cells`\n  expected: an integer >= 1"),
        (lambda: GridCells(UNIT, cells=(2, 2)), r"`cells`\n  expected: one integer, or 1, one a dimension"),
        (lambda: TileCoding(UNIT, tilings=0), r"TileCoding\(\): `tilings`"),
        (lambda: TileCoding(UNIT, tiles=0), r"TileCoding\(\): `tiles`"),
        (lambda: GaussianRBF(UNIT, centres=1), r"`centres`\n  expected: at least 2 a dimension"),
        (lambda: GaussianRBF(UNIT, width=0.0), r"`width`\n  expected: a positive number"),
        (lambda: GaussianRBF(UNIT, width=float("inf")), r"`width`\n  expected: a positive number"),
        (lambda: Fourier(UNIT, order=0), r"Fourier\(\): `order`\n  expected: an integer >= 1"),
        (lambda: Fourier(UNIT, coupling=2), r"`coupling`\n  expected: 1\.\.S=1, or None"),
        (lambda: Polynomial(UNIT, degree=0), r"Polynomial\(\): `degree`"),
        (lambda: Polynomial(UNIT, coupling=0), r"`coupling`"),
        (lambda: Identity(0), r"Identity\(\): `size`"),
        (lambda: Fourier(cube(17), order=3), rf"too many features[\s\S]*got:      {4**17}[\s\S]*coupling=1"),
        (lambda: GridCells(cube(10), cells=5), "too many features"),
        (lambda: TileCoding(cube(10)), "too many features"),
        (lambda: GaussianRBF(cube(10)), "too many features"),
        (lambda: Polynomial(cube(20), degree=2), "too many features"),
    ],
)
def test_refused(make: Callable[[], Features], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.parametrize("name", [name for name in MAPS if name != "identity"])
def test_a_map_refuses_nan(name: str) -> None:
    with pytest.raises(OptionError, match="`obs` holds NaN or infinity"):
        MAPS[name](UNIT)(torch.tensor([[float("nan")]]))


@pytest.mark.production
@pytest.mark.parametrize("name", MAPS)
def test_a_map_refuses_observations_of_another_size(name: str) -> None:
    with pytest.raises(ShapeError, match=r"`obs`\n  expected: \[B, S=2\]"):
        MAPS[name](SQUARE)(torch.zeros(4, 3))
