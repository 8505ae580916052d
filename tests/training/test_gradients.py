import torch
import torch.nn.functional as F
from oracle import make_model, make_peer

from phiscope.packing import pack
from phiscope.training.loss import head_loss
from phiscope.training.options import small_config


def test_gradients_equal_transformers_in_float64():
    config = small_config(vocab_size=40, hidden_size=32, layers=3, heads=4, context=32)
    model = make_model(config)
    peer = make_peer(model).requires_grad_(True)
    model.requires_grad_(True)
    ids = torch.randint(40, (3, 21), generator=torch.Generator().manual_seed(1))
    inputs, targets = ids[:, :-1], ids[:, 1:].flatten()

    tokens, packed = pack(inputs.tolist())
    hidden = model.model(tokens, packed)
    ours = head_loss(hidden, model.lm_head.weight, model.lm_head.bias, targets)
    theirs = F.cross_entropy(peer(inputs).logits.flatten(0, 1), targets, reduction="sum")
    ours.backward()
    theirs.backward()

    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0.0)
    wanted = {name: parameter.grad for name, parameter in peer.named_parameters()}
    for name, parameter in model.named_parameters():
        parts = [name.replace("qkv_proj", f"{part}_proj") for part in "qkv"]
        grad = torch.cat([wanted[x] for x in parts]) if "qkv_proj" in name else wanted[name]
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-11)
