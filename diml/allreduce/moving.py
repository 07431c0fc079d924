"""A shift that is under way while its caller computes.

Owns when its messages may be posted: at its start, but only while all ranks are known to stand at
one place. Must not know logs or scripts: to the protocol it is a shift like any other, at the
place where it is waited for. Invariant: all ranks post the messages of one link in one order.
`Core.recovering` changes on all ranks at one place of the program, in a call that they make
together, or with a new link; so all have posted a shift at its start on the present link, or none.
Who has not exchanges it on the present link when it is waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from diml.allreduce.log import Result, Site, shifted
from diml.allreduce.operation import Array, Kind, Request, signature
from diml.allreduce.wire import flat
from diml.data.memory import aligned_like
from diml.errors import CallFailed, PeerFailed

if TYPE_CHECKING:
    from diml.allreduce.driver import Driver
    from diml.world.link import Link

_TAG = 3


class Moving:
    """A shift that was begun; `wait` gives what it brings."""

    def __init__(
        self,
        driver: Driver,
        collective: Callable[[Request, Callable[[], Result]], Result],
        sent: Array,
        by: int,
        site: Site,
        early: bool,
    ) -> None:
        """Begin. `sent` is C-contiguous and is not changed any more; `early`: post it now."""
        self._driver, self._collective = driver, collective
        self._sent, self._by = sent, by
        code = signature(Kind.SHIFT, by, sent.dtype.num, sent.itemsize, sent.shape)
        self._request = Request(Kind.SHIFT, code, site, False, by, sent)
        self._link: Link | None = None
        self._failed: PeerFailed | CallFailed | None = None
        self._came: Array | None = None
        if early:
            self._post(driver.link)

    def wait(self) -> Array:
        """The array that has come, the caller's own, of the dtype and shape of what was sent."""
        if self._came is None:
            self._came = self._collective(self._request, self._execute).value
        return self._came

    def _post(self, link: Link) -> None:
        self._link, self._memory = link, aligned_like(self._sent)
        to, source = self._ends(link)
        try:
            self._receiving = link.start_exchange(
                flat(self._sent), to, flat(self._memory), source, _TAG
            )
        except (PeerFailed, CallFailed) as error:
            # Raised where it is waited for. Posted once more on this link it could be taken for
            # the next one: half of it may be on its way.
            self._failed = error

    def _execute(self) -> Result:
        link = self._driver.link
        if self._link is not link:
            memory = aligned_like(self._sent)
            to, source = self._ends(link)
            self._driver.held += [self._sent, memory]
            link.sendrecv(flat(self._sent), to, flat(memory), source, _TAG)
            return shifted(self._sent, memory)
        if self._failed is not None:
            raise self._failed
        self._receiving.finish()
        return shifted(self._sent, self._memory)

    def _ends(self, link: Link) -> tuple[int, int]:
        return (link.rank + self._by) % link.size, (link.rank - self._by) % link.size
