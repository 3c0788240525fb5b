"""Is there such a device?"""

import torch

from kdsearch.core.errors import KdsearchError


def check_device(device: torch.device | str) -> None:
    """Raises KdsearchError, with the devices that are here, where no tensor can be put on this one and read again."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        here = [
            "cpu",
            *(["cuda"] if torch.cuda.is_available() else []),
            *(["mps"] if torch.backends.mps.is_available() else []),
        ]
        reason = str(error).splitlines()[0]
        raise KdsearchError(f"device '{device}' cannot be used: {reason}; here: {', '.join(here)}") from None
