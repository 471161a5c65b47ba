"""Wrappers that steer a denoiser; samplers never know."""
