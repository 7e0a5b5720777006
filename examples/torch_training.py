"""A training loop in PyTorch from a saturated start, where autograd's gradient of the formula in float32 is 0."""

import torch

import sigmoid_l2.torch

samples, m, n = 2_000, 4, 6
generator = torch.Generator().manual_seed(0)
# The layer is to learn m votes, each of five features of which some count with the opposite sign; the sixth is 1.
x = torch.randint(0, 2, (samples, n), generator=generator) * 2.0 - 1
x[:, -1] = 1
votes = torch.randint(0, 2, (m, n - 1), generator=generator) * 2.0 - 1
y = (x[:, :-1] @ votes.T > 0).float()  # the targets: 0 or 1, (samples, m)


def formula(W, x, y):
    """The loss of each sample, as people write it: from q = 17 on s is 1 in float32, and s (1 - s) is 0."""
    return (torch.sigmoid(x @ W.T) - y).square().sum(-1)


def train(loss_of, steps, every=20):
    """Gradient descent from W x = 23; the share of right answers and the mean loss every few steps."""
    W = torch.zeros(m, n)
    W[:, -1] = 23  # it begins sure that every answer is 1
    W = torch.nn.Parameter(W)
    # The first gradients are about 1e-10. Adam divides by their size, so its steps are as long as any; but its default
    # for eps, which it adds to that size, is 1e-8, and would make them a hundred times shorter.
    optimizer = torch.optim.Adam([W], lr=0.2, betas=(0.9, 0.99), eps=1e-20)
    seen = []
    for step in range(steps + 1):
        optimizer.zero_grad()
        loss = loss_of(W, x, y).mean()  # one W for all x, so W.grad is the sum over the samples
        loss.backward()
        if step % every == 0:
            right = ((x @ W.T > 0) == y).float().mean()
            seen.append((step, right.item(), loss.item(), W.grad.abs().max().item()))
        optimizer.step()
    return seen


ours, theirs = train(sigmoid_l2.torch.value, 200), train(formula, 200)
print(f"One layer of {m}x{n}, {samples:,} samples.\n")
print("       sigmoid_l2.torch.value               the formula with autograd")
print("step   right   mean loss   max |W.grad|     right   mean loss   max |W.grad|")
for (step, *row), (_, *other) in zip(ours, theirs, strict=True):
    cells = (f"{right:6.1%}  {loss:10.6f}   {gradient:12.2g}" for right, loss, gradient in (row, other))
    print(f"{step:4}   " + "     ".join(cells))
