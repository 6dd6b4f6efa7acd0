"""How often something may happen: a bucket that holds a minute's worth and fills up steadily."""

from __future__ import annotations


class Bucket:
    def __init__(self, per_minute: int, now: float) -> None:
        """Full. Times are of any clock that only goes forward, in seconds."""
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def take(self, now: float) -> float:
        """0 where one may happen now, which is counted; else the seconds until one may."""
        gained = (now - self._at) * self.per_minute / 60
        self._level = min(self._level + gained, float(self.per_minute))
        self._at = now
        if self._level >= 1:
            self._level -= 1
            return 0.0
        return (1 - self._level) * 60 / self.per_minute
