"""The published bounds written out over whole probability vectors in extended precision; nothing here calls the code under test."""

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Vector = NDArray[numpy.longdouble]
SHARE = 0.3  # of uniform noise in hybrids


@dataclass(frozen=True)
class Moment:
    """One noisy token: clean id `x` seen as `z` under q(j | x) = alpha 1[j = x] + noise[j], jumps into z at `rate`, belief `p` (V,)."""

    alpha: float
    noise: Vector
    rate: float
    x: int
    z: int
    p: Vector

    def law(self, belief: Vector) -> Vector:
        return numpy.longdouble(self.alpha) * belief + self.noise

    @property
    def true(self) -> Vector:
        one_hot = numpy.zeros_like(self.p)
        one_hot[self.x] = 1
        return self.law(one_hot)

    def bregman(self) -> float:
        """rate * sum over j != z of r log(r / s) - r + s, r and s the ratios of the true and the predicted law at j and at z."""
        q, model = self.true, self.law(self.p)
        r, s = numpy.delete(q / q[self.z], self.z), numpy.delete(model / model[self.z], self.z)
        logs = numpy.log(r / s, out=numpy.zeros_like(r), where=r > 0)
        return float(self.rate * (r * logs - r + s).sum())

    def kl_and_itakura_saito(self) -> float:
        """GIDD's theorem 1: rate / q(z) * [KL(q || model) + rho - log rho - 1], rho = q(z) / model(z)."""
        q, model = self.true, self.law(self.p)
        rho = q[self.z] / model[self.z]
        logs = numpy.log(q / model, out=numpy.zeros_like(q), where=q > 0)
        return float(self.rate / q[self.z] * ((q * logs).sum() + rho - numpy.log(rho) - 1))

    def udlm(self, dalpha: float) -> float:
        """UDLM's equation for uniform noise on all V ids, with xbar = V alpha x + 1 - alpha."""
        size, alpha = len(self.p), numpy.longdouble(self.alpha)
        bar = numpy.full_like(self.p, 1 - alpha)
        bar[self.x] += size * alpha
        bar_model = size * alpha * self.p + 1 - alpha
        i = self.z
        cross = (bar / bar[i] * numpy.log(bar_model[i] * bar / (bar_model * bar[i]))).sum()
        return float(dalpha / (size * alpha) * (size / bar[i] - size / bar_model[i] - cross))

    def duo(self, dalpha: float) -> float:
        """The same in logarithms, without vectors of the clean token (Duo): one sum over V and two entries."""
        size, alpha = len(self.p), numpy.longdouble(self.alpha)
        bar = numpy.log(size * alpha * self.p + 1 - alpha)
        log_c = numpy.log1p(-alpha) - numpy.log1p((size - 1) * alpha)
        c, at_z, at_x, total = numpy.exp(log_c), bar[self.z], bar[self.x], bar.sum()
        if self.z == self.x:
            r, r_log_r, r_log_s = 1 + (size - 1) * c, (size - 1) * c * log_c, c * (total - size * at_z)
        else:
            r, r_log_r = size - 1 + 1 / c, -log_c / c
            r_log_s = total - size * at_z + (1 / c - 1) * (at_x - at_z)
        return float(-dalpha / (size * alpha) * (size * numpy.exp(-at_z) - r + r_log_r - r_log_s))


def belief(size: int, banned: tuple[int, ...] = (), seed: int = 0, sharpness: float = 3.0) -> Vector:
    """The softmax of random logits (V,), zero at banned ids."""
    weight = numpy.exp(numpy.random.default_rng(seed).normal(size=size).astype(numpy.longdouble) * sharpness)
    weight[list(banned)] = 0
    return weight / weight.sum()


def uniform_moment(t: float, size: int, x: int, z: int) -> Moment:
    """alpha = 1 - t over all ids."""
    p = belief(size, seed=x)
    return Moment(1 - t, numpy.full_like(p, numpy.longdouble(t) / size), 1 / (size * (1 - t)), x, z, p)


def hybrid_moment(t: float, size: int, x: int, z: int) -> Moment:
    """GIDD with gamma = 1; the mask is the last id."""
    t = numpy.longdouble(t)
    n, k = size - 1, numpy.longdouble(2 * SHARE) / (1 - numpy.longdouble(SHARE))
    c = k * numpy.sqrt(t * (1 - t))
    slope = k * (1 - 2 * t) / (2 * numpy.sqrt(t * (1 - t)))
    p = belief(size, banned=(size - 1,), seed=x)
    noise = numpy.full_like(p, c / n / (1 + c))
    noise[-1] = t / (1 + c)
    rate = 1 / ((1 + c) * (1 - t)) if z == size - 1 else (c + (1 - t) * slope) / (n * (1 + c) * (1 - t))
    return Moment((1 - t) / (1 + c), noise, rate, x, z, p)
