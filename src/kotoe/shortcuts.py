"""What a UNet may leave out where a picture that is nearly the same will do: deep features and tokens.

DeepCache (Ma, Fang and Wang 2023, arXiv 2312.00858): what the last block reads of the coarser levels changes little
from step to step, so most steps take it from the one before and compute the first convolution and the last block
alone (cache_branch_id 0 of the authors' package).
Token merging (Bolya and Hoffman 2023, arXiv 2303.17604): in self-attention at the finest level the most alike
positions are put together and stand for each other; of each 2 x 2 the first one is what others are merged into.

Legend: B pictures, N positions (h * w), C channels, M positions that are left.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


class Shortcuts:
    """Those of one batch of pictures, and the features that its forwards keep for each other.

    cache_interval:      every how many forwards the whole network is computed; 1: always.
    token_merging_ratio: share of positions that are merged, 0.0 to 0.75.
    """

    def __init__(self, cache_interval: int = 1, token_merging_ratio: float = 0.0) -> None:
        self.every, self.ratio = cache_interval, token_merging_ratio
        self._since = 0  # forwards since the last whole one
        self._deep: Tensor | None = None  # what that one kept

    def deep(self, count: int) -> Tensor | None:
        """What comes before the last block, (count, C, h, w), as last computed for a batch of `count`; None: it must be
        computed."""
        if self._deep is None or self._since + 1 >= self.every or len(self._deep) != count:
            return None
        self._since += 1
        return self._deep

    def keep(self, x: Tensor) -> None:
        """What came before the last block, of a whole forward."""
        self._since, self._deep = 0, x if self.every > 1 else None


def merged(x: Tensor, h: int, w: int, ratio: float) -> tuple[Change, Change]:
    """How to merge int(N * ratio) of the positions of x (B, N, C), the most alike: (B, N, C') to (B, M, C'), the mean
    of what is merged; and back, (B, M, C') to (B, N, C'), where merged positions get the same."""
    b, n, _ = x.shape
    first = torch.zeros(h, w, dtype=torch.bool, device=x.device)
    first[: h // 2 * 2 : 2, : w // 2 * 2 : 2] = True
    into, others = first.flatten().nonzero()[:, 0], (~first).flatten().nonzero()[:, 0]  # (D,), (N - D,)
    count = min(len(others), int(n * ratio))
    unit = x / x.norm(dim=-1, keepdim=True)
    alike, target = (unit[:, others] @ unit[:, into].transpose(1, 2)).max(dim=2)  # (B, N - D) each
    order = alike.argsort(dim=1, descending=True, stable=True)
    gone, stay = order[:, :count], order[:, count:]  # of the others
    target = target.gather(1, gone)  # (B, count), which of `into`

    def rows(y: Tensor, index: Tensor) -> Tensor:
        return y.gather(1, index[:, :, None].expand(-1, -1, y.shape[2]))

    def merge(y: Tensor) -> Tensor:
        rest, kept = y[:, others], y[:, into]
        where = target[:, :, None].expand(-1, -1, y.shape[2])
        kept = kept.scatter_reduce(1, where, rows(rest, gone), reduce="mean")  # itself counts in the mean
        return torch.cat([rows(rest, stay), kept], dim=1)  # (B, M, C')

    def back(y: Tensor) -> Tensor:
        rest, kept = y.split([stay.shape[1], len(into)], dim=1)
        made = y.new_empty(b, n, y.shape[2])
        made[:, into] = kept
        for index, values in ((stay, rest), (gone, rows(kept, target))):
            made.scatter_(1, others[index][:, :, None].expand(-1, -1, y.shape[2]), values)
        return made  # (B, N, C')

    return merge, back
