"""Plain transcriptions of what VisPruner, HiPrune and VisionZip keep of one image."""

from layer_samples import best


def prune(x, scores, k, variant="official", ratio=0.5):
    """Return the kept tokens of one image as a sorted list; similarities to 10 decimals decide no tie by rounding."""
    x = [row.double() / max(row.double().norm().item(), 1e-300) for row in x]
    cos = [[round(float((a * b).sum()), 10) for b in x] for a in x]
    order = sorted(range(len(x)), key=lambda i: (-scores[i].item(), i))
    if variant == "official":
        important = int(k * ratio)
    else:
        important = round(k * ratio)
        if k > 1:
            important = min(important, k - 1)
    kept, rest = order[:important], order[important:]
    target = k - important
    while target and len(rest) > target:
        if variant == "paper":
            rest.sort()
        a, b = rest[0::2], rest[1::2]
        drop = min(8, len(rest) - target)
        if variant == "paper":
            drop = min(drop, len(rest) // 2)
        a.sort(key=lambda i: -max(cos[i][j] for j in b))  # stable
        rest = a[drop:] + b
    return sorted(kept + (rest if target else []))


def hierarchy(middle, last, width, k, variant="official", alpha=0.1):
    """Return the kept tokens of one image as a sorted list."""
    n, middle, last = len(last), middle.tolist(), last.tolist()
    a = round(k * alpha / 5)
    if variant == "paper" and alpha > 0 and a == 0 and k >= 5:
        a = 1
    anchors = best(middle, a)
    near = {i + step for i in anchors for step in (0, -1, 1, -width, width)}
    near = {min(max(i, 0), n - 1) for i in near}
    if len(near) > k:  # where the authors' code stops or keeps more: anchors first, then by the last layer
        buffers = sorted(near - set(anchors), key=lambda i: (-last[i], i))
        return sorted(anchors + buffers[: k - len(anchors)])
    for i in near:
        last[i] = -float("inf")
    return sorted(near | set(best(last, k - len(near))))


def zip_unit(scores, keys, k, share=10 / 64):
    """Return (kept, owner) of one image or time step; similarities to 10 decimals decide no tie by rounding."""
    n = len(scores)
    contextual = max(1, round(k * share))
    order = sorted(range(n), key=lambda i: (-scores[i].item(), i))
    dominant = set(order[: k - contextual])
    rest = [i for i in range(n) if i not in dominant]
    step = max(1, len(rest) // contextual)
    targets = rest[0::step][:contextual]
    kept = sorted(dominant | set(targets))
    unit = [key.double() / max(key.double().norm().item(), 1e-300) for key in keys]
    owner = []
    for i in range(n):
        if i in kept:
            owner.append(kept.index(i))
            continue
        similarity = [round(float((unit[i] * unit[j]).sum()), 10) for j in targets]
        owner.append(kept.index(targets[similarity.index(max(similarity))]))
    return kept, owner
