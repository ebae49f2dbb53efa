"""How far the loss is scaled up for float16 (Micikevicius et al. 2018, section 3.2).

Gradients below 6e-8 vanish in float16, and above 65,504 are infinite. So the loss is multiplied
before the backward pass and the gradients are divided after it. The scale is half of what it was
after an overflow and twice after many steps without one: the numbers of torch.amp.GradScaler. All
are powers of two, so that scaling rounds nothing.
"""

FIRST = 2.0**16
STEPS_TO_GROW = 2000


def first_scale(precision: str) -> float:
    """Return the scale of a run's first step; 1 in the precisions that need none."""
    return FIRST if precision == "float16" else 1.0


def next_scale(scale: float, age: int, overflowed: bool) -> tuple[float, int]:
    """Return the scale after a step, and its age: the steps without overflow since it changed."""
    if overflowed:
        return scale / 2, 0
    if age + 1 == STEPS_TO_GROW:
        return scale * 2, 0
    return scale, age + 1
