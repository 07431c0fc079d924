"""The parameter server's place in a job in which no process serves.

Owns the delay: `Node` brings in numba, half a second at every start, which a job on collectives
never uses. A single process, its own server, makes one when its program asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diml.allreduce.engine import Engine
    from diml.ps.client import ParameterServer
    from diml.ps.node import Node
    from diml.world.world import World


class WithoutServers:
    """Stands for the parameter server's `Node` until that is needed."""

    def __init__(self, world: World, engine: Engine) -> None:
        self._world, self._engine = world, engine
        self._facts: dict[str, object] = {}
        self._node: Node | None = None

    @property
    def clock(self) -> int | None:
        """See `Node`."""
        return self._node.clock if self._node is not None else None

    def go_to(self, clock: int) -> None:
        """See `Node`."""
        self._whole().go_to(clock)

    def save(self, write: Sequence[bool]) -> bool:
        """See `Node`."""
        return self._whole().save(write)

    def begin(self) -> None:
        """Nothing: no rows are anywhere."""

    begin_anew = begin

    def identify(self, facts: Mapping[str, object]) -> None:
        """Remember facts that tell this job's checkpoints from those of others."""
        self._facts.update(facts)

    def serve(self) -> str:
        """Wait as a spare: "leave" after the last gate, "seated" once the role is a worker's."""
        from diml.world.membership import Role

        self._world.wait_as_spare()
        return "leave" if self._world.role is Role.SPARE else "seated"

    def client(self, **options: Any) -> ParameterServer:
        """The parameter server of a single process, which serves itself."""
        return self._whole().client(**options)

    def _whole(self) -> Node:
        if self._node is None:
            from diml.ps.node import Node

            self._node = Node(self._world, self._engine, self._engine.durability.stop)
            self._node.identify(self._facts)
        return self._node

    def close(self) -> None:
        """A worker's orderly end."""
        if self._node is not None:
            self._node.close()
