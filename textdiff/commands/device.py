"""Where a command computes."""

from typing import Any


def device_named(name: str | None) -> Any:
    """The torch device of that name, by default a GPU when there is one; raises ValueError when it is not here."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that it was not built for
        raise ValueError(f"there is no device {name!r} here ({str(error).splitlines()[0]}): try cpu or cuda") from error
