"""Pictures of a task in the plane: frames painted in NumPy, and the same shapes on a figure's axes.

A task that can be drawn says which part of the plane is seen and which :class:`Shape` is where (:class:`Drawable`).
Frames take no graphics library; :func:`draw_shapes` takes matplotlib, which is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from latentpg.envs.dynamics import Dynamics, DynamicsEnv
from latentpg.errors import OptionError

RENDER_MODES = ("rgb_array",)
"""What ``render_mode`` can be, beside None."""

FRAMES_PER_SECOND = 25
"""How fast a film of an episode is shown."""

Colour = tuple[int, int, int]
"""Red, green and blue, from 0 to 255."""

BACKGROUND: Colour = (255, 255, 255)
"""What is seen where no shape is."""


@dataclass(frozen=True)
class Shape:
    """A disc (``radius``) or, where ``half`` is given, a rectangle that reaches so far to each side of its centre."""

    x: float | int
    y: float | int
    colour: Colour
    radius: float | int = 0.0
    half: tuple[float | int, float | int] | None = None


@dataclass(frozen=True)
class View:
    """The part of the plane that is seen, and how many pixels high; y points up."""

    low: tuple[float | int, float | int]
    high: tuple[float | int, float | int]
    height: int = 256

    @property
    def pixel(self) -> float:
        """How large a pixel is."""
        return (self.high[1] - self.low[1]) / self.height

    @property
    def width(self) -> int:
        """Pixels across."""
        return round((self.high[0] - self.low[0]) / self.pixel)


@runtime_checkable
class Drawable(Dynamics, Protocol):
    """Dynamics that can be drawn."""

    @property
    def view(self) -> View:
        """What is seen."""
        ...

    def scenery(self) -> Sequence[Shape]:
        """Return what never moves."""
        ...

    def figures(self, state: Float[NDArray[np.float64], " D"]) -> Sequence[Shape]:
        """Return what moves, in one member's state."""
        ...


def paint(view: View, shapes: Sequence[Shape]) -> UInt8[NDArray[np.uint8], "H W 3"]:
    """Paint shapes over each other, the last on top, with edges smoothed over one pixel.

    >>> frame = paint(View((0, 0), (1, 1), height=4), [Shape(0.125, 0.875, (255, 0, 0), half=(0.125, 0.125))])
    >>> frame.shape, frame[0, 0].tolist(), frame[0, 2].tolist()
    ((4, 4, 3), [255, 0, 0], [255, 255, 255])
    """
    x = view.low[0] + view.pixel * (np.arange(view.width) + 0.5)
    y = (view.high[1] - view.pixel * (np.arange(view.height) + 0.5))[:, None]
    frame = np.broadcast_to(np.array(BACKGROUND, dtype=np.float64), (view.height, view.width, 3)).copy()
    for shape in shapes:
        across, along = x - shape.x, y - shape.y
        if shape.half is None:
            depth = shape.radius - np.sqrt(across**2 + along**2)
        else:
            depth = np.minimum(shape.half[0] - np.abs(across), shape.half[1] - np.abs(along))
        cover = np.clip(0.5 + depth / view.pixel, 0.0, 1.0)[..., None]
        frame += cover * (np.array(shape.colour) - frame)
    return np.rint(frame).astype(np.uint8)


def draw_shapes(axes: Any, view: View, shapes: Sequence[Shape]) -> None:  # noqa: ANN401 (matplotlib's, imported late)
    """Draw shapes on the axes of a matplotlib figure, and set what is seen."""
    from matplotlib.patches import Circle, Rectangle

    for shape in shapes:
        colour = tuple(part / 255 for part in shape.colour)
        if shape.half is None:
            axes.add_patch(Circle((shape.x, shape.y), shape.radius, color=colour, linewidth=0))
        else:
            corner = (shape.x - shape.half[0], shape.y - shape.half[1])
            axes.add_patch(Rectangle(corner, 2 * shape.half[0], 2 * shape.half[1], color=colour, linewidth=0))
    axes.set(xlim=(view.low[0], view.high[0]), ylim=(view.low[1], view.high[1]), aspect="equal")


class RenderedEnv(gymnasium.Wrapper[NDArray[np.float32], Any, NDArray[np.float32], Any]):
    """One member that shows itself: ``render()`` paints its state."""

    def __init__(self, env: DynamicsEnv, *, render_mode: str) -> None:
        """Take the member, of :class:`Drawable` dynamics."""
        if render_mode not in RENDER_MODES:
            raise OptionError(
                "RenderedEnv()",
                "`render_mode`",
                expected=f"{' or '.join(map(repr, RENDER_MODES))}, or None to draw nothing",
                got=repr(render_mode),
                fix=f"render_mode={RENDER_MODES[0]!r}",
            )
        if not isinstance(env.dynamics, Drawable):
            raise OptionError(
                "RenderedEnv()",
                "`env`",
                expected="dynamics that say what is seen (view, scenery, figures)",
                got=repr(env.dynamics),
                fix="render_mode=None",
            )
        super().__init__(env)
        self.metadata = {"render_modes": list(RENDER_MODES), "render_fps": FRAMES_PER_SECOND}
        env.render_mode = render_mode  # where Gymnasium's wrappers look for it
        self.member, self.dynamics = env, env.dynamics

    def render(self) -> UInt8[NDArray[np.uint8], "H W 3"]:
        """Paint the present state."""
        if self.member.state is None:
            raise gymnasium.error.ResetNeeded("call reset() before render()")
        return paint(self.dynamics.view, [*self.dynamics.scenery(), *self.dynamics.figures(self.member.state[0])])


def make_drawn(dynamics: Drawable, *, render_mode: str | None) -> gymnasium.Env[NDArray[np.float32], Any]:
    """Make one member, with a renderer where one is asked for."""
    member = DynamicsEnv(dynamics)
    return member if render_mode is None else RenderedEnv(member, render_mode=render_mode)
