"""The closed-form denoiser: the exact noise prediction for data drawn from a Gaussian mixture.

Covariance eigenvalues fall like i^-1.2, as an image's do; the component means differ in the leading directions.  Its
Jacobian is that of an ideal denoiser, so what solvers do on it carries over to trained networks; a random network has
almost none and flatters every solver.
"""

import numpy as np

from nrinv import Inversion

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


class Mixture:
    """network(x [B, D], timestep) -> predicted noise [B, D], both as a variance-preserving model sees them."""

    def __init__(self, dimension=1024, components=24, seed=0):
        rng = np.random.default_rng(seed)
        variance = np.arange(1, dimension + 1) ** -1.2
        self.variance = np.maximum(variance / variance.mean(), 2e-5)
        self.means = np.zeros((components, dimension))
        self.means[:, :16] = rng.standard_normal((components, 16)) * np.sqrt(self.variance[:16])
        self.log_sigma = 0.5 * np.log((1 - ALPHAS) / ALPHAS)

    def __call__(self, x, timestep):
        sigma = np.exp(np.interp(timestep, np.arange(1000), self.log_sigma))
        z = x.astype(np.float64) * np.sqrt(1 + sigma**2)
        total = self.variance + sigma**2
        log_weight = -0.5 * (((z[:, None] - self.means) ** 2) / total).sum(-1)
        weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        gain = self.variance / total
        denoised = weight @ ((1 - gain) * self.means) + gain * z
        return (z - denoised) / sigma


def draw(sampler, network, noise, noises=()):
    """Run the sampler forward in float64 by its linear form; the final sample."""
    basis = [noise, *[np.zeros_like(noise)] * len(sampler), *noises]
    states = sampler.states
    for j in range(len(sampler)):
        sample = sum(c * x for c, x in zip(states[j], basis, strict=True) if c)
        basis[1 + j] = network(sampler.inputs[j] * sample, sampler.timesteps[j])
    return sum(c * x for c, x in zip(states[-1], basis, strict=True) if c)


def invert(sampler, network, target, **options):
    """Drive an Inversion with the network in a plain loop."""
    inversion = Inversion(sampler, target.astype(np.float32), **options)
    while request := inversion.next():
        inversion.feed(network(request.scale * request.sample.astype(np.float64), request.timestep))
    return inversion.result()


def log_error(sampler, network, target, result, noises=()):
    """log10 of the relative reconstruction error of each sample, measured by a forward run of our own."""
    again = draw(sampler, network, result.latents.astype(np.float64), noises)
    return np.log10(np.linalg.norm(again - target, axis=1) / np.linalg.norm(target, axis=1))
