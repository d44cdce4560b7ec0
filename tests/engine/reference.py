"""Hand-written training loops: the literal formulas, one process, nothing of the package."""

import torch


def literal_penalty(losses: dict, z, lambda_tsr: float, lambda_csa: float, log: bool = True):
    """lambda_tsr TSR + lambda_csa CSA with C x C matrices, for samples that all tasks have a gradient on."""
    saliency = []
    for loss in losses.values():
        grad = torch.autograd.grad(loss, z, create_graph=True)[0]
        saliency.append(grad / loss.detach() if log else grad)
    s = torch.stack(saliency).flatten(3)
    ownership = s.mean(2).abs()
    ownership = ownership / ownership.sum(0)
    tsr = -(ownership * ownership.log()).sum(0).mean()

    def unit(m):
        return m.flatten(-2) / m.flatten(-2).norm(dim=-1, keepdim=True)

    anchors = s.mean(3).permute(1, 2, 0)
    a = unit(anchors @ anchors.mT)
    m = unit(s @ s.mT)
    positive = (a[None] * m).sum(-1)
    similarity = a @ a.T
    b = len(a)
    negatives = torch.stack([torch.logsumexp(similarity[i][torch.arange(b) != i], 0) for i in range(b)])
    csa = (negatives[None] - positive).mean()
    return lambda_tsr * tsr + lambda_csa * csa


def pcgrad(rows, generator):
    """Algorithm 1 of the paper on flat gradients, in the order that the generator gives."""
    projected = [row.clone() for row in rows]
    for i in range(len(rows)):
        for j in torch.randperm(len(rows), generator=generator).tolist():
            if j != i and projected[i] @ rows[j] < 0:
                projected[i] = projected[i] - (projected[i] @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
    return sum(projected)


def losses_and_z(model, batch):
    """The task losses and the shared representation that they were computed from."""
    captured = []
    hook = model.encoder.register_forward_hook(lambda *call: captured.append(call[2]))
    losses = model.losses(**batch)
    hook.remove()
    return losses, captured[0]


def train(
    model,
    windows,
    *,
    log=False,
    lambdas=None,
    lr=0.1,
    momentum=0.9,
    clip=None,
    use_pcgrad=False,
    optimizer=None,
    generator=None,
) -> list[float]:
    """Plain SGD over windows (lists of micro-batches); returns the objective of each micro-batch."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    generator = generator or torch.Generator().manual_seed(0)
    values = []
    for window in windows:
        optimizer.zero_grad()
        rows = None
        for batch in window:
            losses, z = losses_and_z(model, batch)
            terms = {task: loss.log() if log else loss for task, loss in losses.items()}
            penalty = literal_penalty(losses, z, *lambdas) if lambdas else 0.0
            total = (sum(terms.values()) + penalty) / len(window)
            values.append(float(total.detach()) * len(window))
            if use_pcgrad:
                shared = list(model.encoder.parameters())
                grads = [
                    torch.cat([g.flatten() for g in torch.autograd.grad(term / len(window), shared, retain_graph=True)])
                    for term in terms.values()
                ]
                rows = grads if rows is None else [r + g for r, g in zip(rows, grads, strict=True)]
                torch.autograd.backward(
                    sum(terms.values()) / len(window), inputs=list(model.heads.parameters()), retain_graph=True
                )
                if lambdas:
                    (penalty / len(window)).backward()
            else:
                total.backward()
        if use_pcgrad:
            combined, start = pcgrad(rows, generator), 0
            for p in model.encoder.parameters():
                part = combined[start : start + p.numel()].view_as(p)
                p.grad = part if p.grad is None else p.grad + part
                start += p.numel()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return values
