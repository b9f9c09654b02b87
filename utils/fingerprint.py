"""What tells the data that a run learned from others: a hash of them that its files keep."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fingerprint:
    """What tells data from others.

    Attributes:
        kept: what files of a run keep of it: a hash of all that tasks are made of. Of files that are too many to be
            read it is one of their names and classes, and behind a dot one of their sizes: a file that cannot be read
            may be replaced.
        before: what earlier versions kept of the same data.
    """

    kept: str
    before: tuple[str, ...] = ()

    def same(self, other: object) -> bool:
        """Whether a file was made with these data, by what it keeps; one that keeps nothing may have been."""
        return other is None or other in self.before or str(other).partition(".")[0] == self.kept.partition(".")[0]

    def resized(self, other: object) -> bool:
        """Whether a file was made with these data when some of their own files had other sizes."""
        return self.same(other) and other not in (None, self.kept, *self.before)
