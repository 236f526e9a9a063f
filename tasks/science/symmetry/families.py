"""The tree of a spec's nested axes.

An attention layer's heads are an axis, the channels within each head another one, nested in it. Axes that stand at the
same place of different blocks are one family; families are nested as their axes are.
"""

from __future__ import annotations

from tasks.science.symmetry.permutation import Axis, PermutationSpec, UnitPath


class Families:
    """The families of a spec, with their axes and parents; the units of a family count through all of its axes."""

    def __init__(self, spec: PermutationSpec) -> None:
        self.spec = spec
        self.axes: dict[str, list[Axis]] = {}
        self.children: dict[str, list[str]] = {}
        self.parent: dict[str, str | None] = {}
        self._first: dict[str, int] = {}
        for axis in spec.axes:  # parents stand before their children
            if axis.family not in self.axes:
                above = None if axis.parent is None else spec.by_name[axis.parent].family
                self.parent[axis.family] = above
                self.children[axis.family] = []
                if above is not None:
                    self.children[above].append(axis.family)
            members = self.axes.setdefault(axis.family, [])
            self._first[axis.name] = sum(member.size for member in members)
            members.append(axis)
        self.root_of = {family: root for root in self.roots for family in self.tree(root)}

    @property
    def roots(self) -> list[str]:
        """Families that are nested in no other, in the order of the spec."""
        return [family for family, parent in self.parent.items() if parent is None]

    def tree(self, root: str) -> list[str]:
        """Return `root` and all families below it, parents before children."""
        found = [root]
        for family in found:
            found += self.children[family]
        return found

    def units(self, family: str, path: UnitPath) -> slice:
        """Return the units of one axis among those of its family."""
        name = self.spec.named[family, path]
        return slice(self._first[name], self._first[name] + self.spec.by_name[name].size)
