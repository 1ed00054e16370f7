"""A simple encoder of K-quants, which the `gguf` package can only read. Its dequantization defines what is right."""

import numpy as np
from gguf import GGMLQuantizationType as Type

K_QUANTS = (Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K)

ROUNDS = 8


def quantize_k(values, kind):
    """Return bytes of shape (rows, bytes per row) for values of shape (rows, columns)."""
    encode = {
        Type.Q2_K: _q2_k,
        Type.Q3_K: _q3_k,
        Type.Q4_K: lambda groups: _q45_k(groups, 4),
        Type.Q5_K: lambda groups: _q45_k(groups, 5),
        Type.Q6_K: _q6_k,
    }[kind]
    blocks = encode(np.ascontiguousarray(values, np.float32).reshape(-1, 256))
    return blocks.reshape(len(values), -1)


def _halves(numbers):
    return numbers.astype("<f2")[:, None].view(np.uint8)


def _divide(numerator, denominator):
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def _fit_offset(groups, highest):
    """Return scales and offsets that nearly minimize the squared error, by alternating levels and linear regression."""
    low = np.minimum(groups.min(axis=2), 0)
    scale = (groups.max(axis=2) - low) / highest
    for _ in range(ROUNDS):
        steps = np.broadcast_to(scale[..., None], groups.shape)
        levels = np.clip(np.rint(_divide(groups - low[..., None], steps)), 0, highest)
        centered = levels - levels.mean(axis=2, keepdims=True)
        slope = _divide((centered * groups).sum(axis=2), np.square(centered).sum(axis=2))
        scale = np.where(slope > 0, slope, scale)
        low = np.minimum(groups.mean(axis=2) - scale * levels.mean(axis=2), 0)
    return scale, low


def _fit_scale(groups, highest):
    """Return scales that nearly minimize the squared error, by alternating levels and linear regression."""
    scale = np.abs(groups).max(axis=2) / (highest - 0.5)
    for _ in range(ROUNDS):
        steps = np.broadcast_to(scale[..., None], groups.shape)
        levels = np.clip(np.rint(_divide(groups, steps)), -highest, highest - 1)
        slope = _divide((levels * groups).sum(axis=2), np.square(levels).sum(axis=2))
        scale = np.where(slope > 0, slope, scale)
    return scale


def _offset_groups(blocks, size, bits, scale_bits):
    """Quantize groups to `level * scale - minimum`, with quantized scales and minima."""
    groups = blocks.reshape(len(blocks), -1, size)
    scale, low = _fit_offset(groups, 2**bits - 1)
    highest = 2**scale_bits - 1
    factors = [(part.max(axis=1) / highest).astype("<f2").astype(np.float32) for part in (scale, -low)]
    scales, minima = (
        np.clip(np.rint(_divide(part, np.broadcast_to(factor[:, None], part.shape))), 0, highest)
        for part, factor in zip((scale, -low), factors, strict=True)
    )
    step, minimum = factors[0][:, None] * scales, factors[1][:, None] * minima
    shifted = groups + minimum[..., None]
    levels = np.clip(np.rint(_divide(shifted, np.broadcast_to(step[..., None], shifted.shape))), 0, 2**bits - 1)
    return levels.astype(np.uint8), scales.astype(np.uint8), minima.astype(np.uint8), *factors


def _signed_groups(blocks, bits, limit):
    """Quantize groups of 16 to `level * scale`, with levels and quantized scales that have a sign."""
    groups = blocks.reshape(len(blocks), 16, 16)
    highest = 2 ** (bits - 1)
    scale = _fit_scale(groups, highest)
    factor = (scale.max(axis=1) / limit).astype("<f2").astype(np.float32)
    scales = np.clip(np.rint(_divide(scale, np.broadcast_to(factor[:, None], scale.shape))), 0, limit)
    step = (factor[:, None] * scales)[..., None]
    levels = np.clip(np.rint(_divide(groups, np.broadcast_to(step, groups.shape))), -highest, highest - 1)
    return (levels + highest).astype(np.uint8).reshape(-1, 256), scales.astype(np.uint8), factor


def _q45_k(blocks, bits):
    levels, scales, minima, factor, minimum = _offset_groups(blocks, 32, bits, 6)
    packed = np.zeros((len(blocks), 12), np.uint8)
    packed[:, 0:4] = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    packed[:, 4:8] = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    packed[:, 8:12] = scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4
    pairs = levels.reshape(len(blocks), 4, 2, 32)
    low = (pairs[:, :, 0] & 15 | (pairs[:, :, 1] & 15) << 4).reshape(len(blocks), 128)
    high = np.zeros((len(blocks), 0), np.uint8)
    if bits == 5:
        shifts = np.arange(8, dtype=np.uint8)[None, :, None]
        high = np.bitwise_or.reduce((levels >> 4) << shifts, axis=1)
    return np.concatenate([_halves(factor), _halves(minimum), packed, high, low], axis=1)


def _q6_k(blocks):
    levels, scales, factor = _signed_groups(blocks, 6, 127)
    halves = levels.reshape(len(blocks), 2, 4, 32)
    low = np.concatenate(
        [halves[:, :, 0] & 15 | (halves[:, :, 2] & 15) << 4, halves[:, :, 1] & 15 | (halves[:, :, 3] & 15) << 4], axis=2
    )
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = np.bitwise_or.reduce((halves >> 4) << shifts, axis=2)
    size = len(blocks)
    return np.concatenate([low.reshape(size, 128), high.reshape(size, 64), scales, _halves(factor)], axis=1)


def _q2_k(blocks):
    levels, scales, minima, factor, minimum = _offset_groups(blocks, 16, 2, 4)
    quarters = levels.reshape(len(blocks), 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    low = np.bitwise_or.reduce(quarters << shifts, axis=2).reshape(len(blocks), 64)
    return np.concatenate([scales | minima << 4, low, _halves(factor), _halves(minimum)], axis=1)


def _q3_k(blocks):
    levels, scales, factor = _signed_groups(blocks, 3, 31)
    quarters = levels.reshape(len(blocks), 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    low = np.bitwise_or.reduce((quarters & 3) << shifts, axis=2).reshape(len(blocks), 64)
    masks = np.arange(8, dtype=np.uint8)[None, :, None]
    high = np.bitwise_or.reduce((levels.reshape(len(blocks), 8, 32) >> 2) << masks, axis=1)
    stored = scales + 32
    packed = np.zeros((len(blocks), 12), np.uint8)
    packed[:, :8] = stored[:, :8] & 15 | (stored[:, 8:] & 15) << 4
    parts = (stored >> 4).reshape(len(blocks), 4, 4)
    packed[:, 8:] = parts[:, 0] | parts[:, 1] << 2 | parts[:, 2] << 4 | parts[:, 3] << 6
    return np.concatenate([high, low, packed, _halves(factor)], axis=1)
