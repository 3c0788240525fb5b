"""From a draw to pixels, and the frozen policy with its exports."""
