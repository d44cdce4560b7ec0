"""The aggregators with gradient-sized state once more: from whole histories, loop by loop, in float64, without tricks.

Each takes the steps so far (gradients (T, P), losses (T,)) and returns the result of the last one. A task is
unlabelled in a step where its row is zero.
"""

import io
import itertools

import torch

SIZES = (4, 1, 6)


def history(steps=8, num_tasks=3, size=11, seed=0, missing=True):
    """Gradients, in some steps zero for some tasks, and losses of each step."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(steps, num_tasks, size, generator=generator, dtype=torch.float64)
    gradients *= torch.tensor([1.0, 30.0, 0.05], dtype=torch.float64)[:num_tasks, None]
    if missing:
        for step, task in ((0, 0), (2, 1), (3, 0), (3, 2), (5, 0), (5, 1), (5, 2), (6, 2)):
            gradients[step, task] = 0
    losses = torch.rand(steps, num_tasks, generator=generator, dtype=torch.float64) + 0.5
    return gradients, losses * (gradients != 0).any(2)


def build(kind, **arguments):
    aggregator = kind(**arguments)
    aggregator.setup(3)
    aggregator.setup(3, SIZES)
    return aggregator


def run(aggregator, gradients, losses):
    return [aggregator(g, loss)[0] for g, loss in zip(gradients, losses, strict=True)]


def saved(aggregator):
    """A state dict that went through a file."""
    buffer = io.BytesIO()
    torch.save(aggregator.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def split(row, sizes):
    return row.split(list(sizes))


def present(gradients):
    return [t for t, row in enumerate(gradients) if any(x != 0 for x in row.tolist())]


def db_mtl(gradients, losses, beta, decay):
    """Every average as the explicit weighted mean of the task's own past."""
    averages = {}
    for t in present(gradients[-1]):
        seen = [(g[t] / loss[t]) for g, loss in zip(gradients, losses, strict=True) if t in present(g)]
        rates = [beta / k**decay for k in range(1, len(seen) + 1)]
        shares = [(1 - rates[j]) * torch.tensor(rates[j + 1 :], dtype=torch.float64).prod() for j in range(len(seen))]
        averages[t] = sum(s * g for s, g in zip(shares, seen, strict=True)) / sum(shares)
    if not averages:
        return torch.zeros_like(gradients[-1][0])
    largest = max(average.norm() for average in averages.values())
    return sum(largest * average / average.norm() for average in averages.values())


def nearest_on_simplex(values):
    """By bisection for the threshold, to the last digit."""
    low, high = values.min() - 1, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        if (values - middle).clamp(min=0).sum() > 1:
            low = middle
        else:
            high = middle
    return (values - high).clamp(min=0)


def moco(gradients, beta, beta_decay, gamma, gamma_decay, rho):
    num_tasks = len(gradients[0])
    tracked, counts, steps = [None] * num_tasks, [0] * num_tasks, 0
    weights = torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64)
    result = torch.zeros_like(gradients[0][0])
    for step in gradients:
        here = present(step)
        if not here:
            result = torch.zeros_like(result)
            continue
        steps += 1
        for t in here:
            counts[t] += 1
            rate = beta / counts[t] ** beta_decay
            tracked[t] = step[t].clone() if counts[t] == 1 else tracked[t] - rate * (tracked[t] - step[t])
        products = torch.stack([torch.stack([tracked[i] @ tracked[j] for j in here]) for i in here])
        products = products / products.diagonal().mean() + rho * torch.eye(len(here), dtype=torch.float64)
        total = weights[here].sum()
        own = weights[here] / total if total > 0 else torch.full((len(here),), 1 / len(here), dtype=torch.float64)
        own = nearest_on_simplex(own - gamma / steps**gamma_decay * (products @ own))
        weights[here] = own * total
        result = sum(w * tracked[t] for w, t in zip(own, here, strict=True))
    return result


def excess_mtl(gradients, eta):
    """Returns the result and the weights."""
    num_tasks = len(gradients[0])
    logarithms = []
    for t in range(num_tasks):
        own = [g[t] for g in gradients if t in present(g)]
        risks = []
        for k in range(len(own)):
            curvature = sum(g**2 for g in own[: k + 1]).sqrt()
            risks.append(sum((g**2 / h).item() for g, h in zip(own[k], curvature, strict=True) if g != 0))
        logarithms.append(sum(eta * risk / risks[0] for risk in risks[1:]))
    weights = torch.tensor(logarithms, dtype=torch.float64).exp()
    weights = num_tasks * weights / weights.sum()
    return sum(w * g for w, g in zip(weights, gradients[-1], strict=True)), weights


def metabalance(gradients, sizes, target, relax, beta, strategy):
    parts = []
    for layer in range(len(sizes)):
        rows = [[split(row, sizes)[layer] for row in step] for step in gradients]
        averages = []
        for t in range(len(gradients[0])):
            norms = [step[t].norm() for step in rows if step[t].norm() > 0]
            shares = [beta ** (len(norms) - 1 - j) for j in range(len(norms))]
            averages.append(sum(s * n for s, n in zip(shares, norms, strict=True)) / sum(shares) if norms else None)
        total = 0
        for t, row in enumerate(rows[-1]):
            scaled = row
            if averages[t] is not None and averages[target] is not None:
                larger = averages[t] > averages[target]
                if strategy == 'both' or (strategy == 'reduce' and larger) or (strategy == 'enlarge' and not larger):
                    scaled = row * averages[target] / averages[t] * relax + row * (1 - relax)
            total = total + scaled
        parts.append(total)
    return torch.cat(parts)


def mtadam(gradients, sizes, betas, eps, extras=None):
    """In the units of the current anchor: when an earlier task takes over, moments are converted to its norm."""
    beta1, beta2, beta3 = betas
    starts = [0, *itertools.accumulate(sizes)]
    num_tasks, update = len(gradients[0]), torch.zeros_like(gradients[0][0])
    counts = [0] * num_tasks
    first, second = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0])
    norms = [[0.0] * len(sizes) for _ in range(num_tasks)]
    anchors, units = [None] * len(sizes), [None] * len(sizes)
    for number, step in enumerate(gradients):
        here = present(step)
        update = torch.zeros_like(update)
        for t in here:
            counts[t] += 1
        for layer, size in enumerate(sizes):
            columns = slice(starts[layer], starts[layer] + size)
            for t in range(num_tasks):
                norm = step[t, columns].norm().item()
                if norm > 0:
                    old = norms[t][layer]
                    norms[t][layer] = beta3 * old + (1 - beta3) * norm if old > 0 else norm
            seen = [t for t in range(num_tasks) if norms[t][layer] > 0]
            if not seen or not here:
                continue
            anchor = seen[0]
            if anchors[layer] is None:
                units[layer] = norms[anchor][layer] / size**0.5
            elif anchors[layer] != anchor:
                change = norms[anchor][layer] / norms[anchors[layer]][layer]
                first[:, columns] *= change
                second[:, columns] *= change**2
                units[layer] *= change
            anchors[layer] = anchor
            largest = torch.zeros(size, dtype=torch.float64)
            for t in here:
                balanced = step[t, columns] * (norms[anchor][layer] / norms[t][layer] if norms[t][layer] else 0)
                if extras is not None and t == here[0]:
                    balanced = balanced + extras[number][columns]
                first[t, columns] = beta1 * first[t, columns] + (1 - beta1) * balanced
                second[t, columns] = beta2 * second[t, columns] + (1 - beta2) * balanced**2
                largest = torch.maximum(largest, second[t, columns] / (1 - beta2 ** counts[t]))
            for t in here:
                mean = first[t, columns] / (1 - beta1 ** counts[t])
                update[columns] += mean / (largest.sqrt() + eps * units[layer])
    return update


def graddrop_at_representation(gradients, representation, uniform, leak):
    """One sample, task and feature at a time; ``uniform`` has one entry per feature."""
    num_tasks, batch = gradients.shape[:2]
    result = torch.zeros_like(gradients[0])
    for feature in itertools.product(*map(range, gradients.shape[2:])):
        sums = [
            sum(gradients[(t, b, *feature)] * representation[(b, *feature)].sign() for b in range(batch))
            for t in range(num_tasks)
        ]
        magnitude = sum(abs(s) for s in sums)
        purity = (1 + sum(sums) / magnitude) / 2 if magnitude > 0 else 0
        for t in range(num_tasks):
            kept = sums[t] == 0 or (sums[t] > 0) == (uniform[feature] < purity)
            for b in range(batch):
                result[(b, *feature)] += gradients[(t, b, *feature)] * (1 if kept else leak)
    return result
