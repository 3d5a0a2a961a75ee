"""Which kind of site a weight gets: by what its layer holds, and by what a method does with inactive weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .block_site import BlockSite
from .errors import AttachError
from .inactive import Live
from .live_site import LiveSite
from .method import Method
from .nn._two_four import kept
from .ownership import check_free
from .sites import DenseSite
from .sparse_layer import block_of
from .sparse_methods import check_method
from .sparse_site import SparseSite
from .targets import Candidate
from .topology import Static

AnySite = DenseSite | SparseSite


def make_sites(candidates: Iterable[Candidate], method: Method, model: nn.Module) -> dict[str, AnySite]:
    """Weight name -> its site, not started yet, of the candidates that are to be sparse; nothing changes.

    Raises:
        AttachError: a weight is owned already or has no values.
        ConfigError: the method cannot run on a weight.
    """
    sites = {each.name: _site(each, method) for each in candidates if each.sparse}
    compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
    for name, site in sites.items():
        if isinstance(site, SparseSite):
            block, shape = block_of(site.module), tuple(site.shape)
            check_method(method, name, compiled=compiled, block=block, shape=shape)
    return sites


def _site(candidate: Candidate, method: Method) -> AnySite:
    check_free(candidate.name, candidate.parameter)
    if candidate.parameter.is_meta:
        raise AttachError(f"{candidate.name} is on the meta device and has no values; materialise the model first")
    held, inactive = (candidate.name, candidate.module, candidate.attribute, candidate.parameter), method.inactive
    moves = not isinstance(method.rule, Static)
    if candidate.layer is not None:
        return (SparseSite if block_of(candidate.layer) is None else BlockSite)(*held, inactive, rewires=moves)
    two_four = kept(method.structure) if moves else (True, True)
    if isinstance(inactive, Live):
        return LiveSite(*held, inactive, two_four=two_four)
    return DenseSite(*held, inactive, two_four=two_four)
