"""Conformer encoder: padding, order of the blocks, attention and sizes."""

from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from local_modules import conformer
from local_modules.conformer import (
    ConformerBlock,
    ConformerEncoder,
    ConvolutionModule,
    FeedForward,
    SelfAttention,
    rotate,
)
from local_modules.dropout import Dropout
from local_modules.embedder import BottleneckProjection, SpeakerEmbedder
from local_modules.masking import frame_counts, frame_mask
from local_modules.pooling import StatisticsPooling
from local_modules.subsampling import ConvSubsampling, StackSubsampling

N_MELS = 20
D_MODEL = 16
COUNTS = [9, 17, 24, 31, 40, 41]
SUBSAMPLINGS = {
    "conv 1/2": partial(ConvSubsampling, factor=2, channels=4),
    "conv 1/4": partial(ConvSubsampling, factor=4, channels=4),
    "stack 1/8": partial(StackSubsampling, factor=8),
}
each_subsampling = pytest.mark.parametrize(
    "subsampling", SUBSAMPLINGS.values(), ids=SUBSAMPLINGS
)
each_norm = pytest.mark.parametrize("conv_norm", ["batch", "layer"])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads cost more than they bring on tensors this small."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def scrambled(module):
    """Moves every parameter and statistic off its start, where zeros and ones could
    hide a mistake, and switches to evaluation."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return module.eval()


def encoder(subsampling=SUBSAMPLINGS["conv 1/4"], **kwargs):
    sizes = {"d_model": D_MODEL, "n_blocks": 2, "d_ffn": 24, "kernel_size": 5}
    return scrambled(ConformerEncoder(N_MELS, subsampling, **sizes | kwargs))


def padded_batch(counts=COUNTS, size=N_MELS):
    """Features with garbage in the padding, and relative lengths."""
    n_frames = max(counts)
    feats = torch.randn(len(counts), n_frames, size)
    for row, count in zip(feats, counts, strict=True):
        row[count:] = 100.0
    return feats, torch.tensor(counts) / n_frames


def assert_padded_equals_alone(frames, mask, alone_outputs):
    for row, keep, alone in zip(frames, mask, alone_outputs, strict=True):
        assert keep.sum() == alone.shape[1]
        torch.testing.assert_close(row[keep], alone[0], atol=1e-5, rtol=1e-5)


# Subsampling


@each_subsampling
def test_subsampling_padded_equals_alone(subsampling):
    layer = scrambled(subsampling(N_MELS, D_MODEL))
    feats, lens = padded_batch()
    counts = frame_counts(lens, feats.shape[1])
    feats = feats * frame_mask(counts, feats.shape[1]).unsqueeze(-1)
    out = layer(feats, counts)
    mask = frame_mask(layer.output_counts(counts), out.shape[1])
    alone = [
        layer(row[None, :count], None) for row, count in zip(feats, COUNTS, strict=True)
    ]
    assert_padded_equals_alone(out, mask, alone)


@each_subsampling
def test_subsampling_counts_its_own_output(subsampling):
    layer = subsampling(N_MELS, D_MODEL)
    for n_frames in range(layer.min_frames, 50):
        out = layer(torch.zeros(1, n_frames, N_MELS), None)
        assert out.shape[1] == layer.output_counts(torch.tensor(n_frames))


def test_stack_subsampling_is_a_linear_map_of_each_stack():
    layer = StackSubsampling(3, 5, factor=4)
    feats = torch.randn(1, 11, 3)
    out = layer(feats, None)
    for k in range(2):
        stack = torch.cat([feats[0, 4 * k + i] for i in range(4)])
        torch.testing.assert_close(out[0, k], layer.linear(stack))
    assert out.shape == (1, 2, 5)


@pytest.mark.parametrize("factor", [2, 4])
def test_conv_subsampling_is_convolution_and_swish_by_halves(factor):
    layer = ConvSubsampling(7, D_MODEL, factor, channels=4)
    feats = torch.randn(2, 13, 7)
    x = feats.unsqueeze(1)
    for conv in layer.convs:
        x = nn.functional.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
        x = x * torch.sigmoid(x)
    # One output frame is all channels at all frequencies.
    for t in range(x.shape[2]):
        torch.testing.assert_close(
            layer(feats, None)[:, t], layer.linear(x[:, :, t].flatten(1))
        )


@pytest.mark.parametrize("n_mels", [1, 7, 64, 80])
@pytest.mark.parametrize("factor", [2, 4])
def test_conv_subsampling_takes_any_number_of_features(n_mels, factor):
    layer = ConvSubsampling(n_mels, D_MODEL, factor, channels=4)
    assert layer(torch.zeros(1, 9, n_mels), None).shape[2] == D_MODEL


# Rotary positions


def test_rotated_products_depend_on_the_distance_only():
    query, key = torch.randn(8, dtype=torch.float64), torch.randn(8).double()
    products = rotate(query.expand(12, 8)) @ rotate(key.expand(12, 8)).T
    for distance in range(-11, 12):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(
            diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0
        )
    assert products[0].std() > 0.1
    assert not torch.allclose(products[0, 5], products[5, 0])


def test_rotation_by_hand():
    x = torch.tensor([[1.0, 3.0, 2.0, 4.0]]).expand(4, 4)
    angles = torch.tensor([3.0, 3.0 / 100])
    first = x[3, :2] * angles.cos() - x[3, 2:] * angles.sin()
    second = x[3, :2] * angles.sin() + x[3, 2:] * angles.cos()
    torch.testing.assert_close(rotate(x)[3], torch.cat([first, second]))
    torch.testing.assert_close(rotate(x)[0], x[0])


# Attention


def reference_attention(attention):
    reference = nn.MultiheadAttention(D_MODEL, attention.n_heads, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": attention.in_proj.weight,
            "in_proj_bias": attention.in_proj.bias,
            "out_proj.weight": attention.out_proj.weight,
            "out_proj.bias": attention.out_proj.bias,
        }
    )
    return reference.eval()


@pytest.mark.parametrize("n_heads", [1, 2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_without_rotation_is_torch_multihead_attention(
    monkeypatch, n_heads, padded
):
    monkeypatch.setattr(conformer, "rotate", lambda x: x)
    attention = scrambled(SelfAttention(D_MODEL, n_heads))
    x = torch.randn(3, 10, D_MODEL)
    mask = frame_mask(torch.tensor([4, 10, 7]), 10) if padded else None
    expected, _ = reference_attention(attention)(
        x, x, x, key_padding_mask=None if mask is None else ~mask
    )
    torch.testing.assert_close(attention(x, mask), expected, atol=1e-5, rtol=1e-5)


def test_attention_does_not_depend_on_where_the_utterance_begins():
    attention = scrambled(SelfAttention(D_MODEL, 4))
    x = torch.randn(1, 15, D_MODEL)
    mask = (torch.arange(15) >= 5).unsqueeze(0)
    torch.testing.assert_close(
        attention(x, mask)[:, 5:], attention(x[:, 5:], None), atol=1e-5, rtol=1e-5
    )


def test_attention_tells_positions_apart():
    attention = scrambled(SelfAttention(D_MODEL, 4))
    x = torch.randn(1, 10, D_MODEL)
    moved = x[:, torch.randperm(10)]
    difference = attention(x, None).mean(1) - attention(moved, None).mean(1)
    assert difference.abs().max() > 1e-3


# Modules and blocks


@pytest.mark.parametrize(
    "build",
    [
        lambda: SelfAttention(D_MODEL, 4),
        lambda: ConvolutionModule(D_MODEL, 7, "batch"),
        lambda: ConvolutionModule(D_MODEL, 7, "layer"),
        lambda: ConformerBlock(D_MODEL, 4, 24, 7, "batch"),
        lambda: ConformerBlock(D_MODEL, 4, 24, 7, "layer"),
    ],
    ids=["attention", "conv batch", "conv layer", "block batch", "block layer"],
)
def test_module_padded_equals_alone(build):
    module = scrambled(build())
    x, _ = padded_batch(size=D_MODEL)
    mask = frame_mask(torch.tensor(COUNTS), x.shape[1])
    alone = [
        module(row[None, :count], None) for row, count in zip(x, COUNTS, strict=True)
    ]
    assert_padded_equals_alone(module(x, mask), mask, alone)


def test_convolution_module_is_the_sequence_that_the_paper_draws():
    module = scrambled(ConvolutionModule(D_MODEL, 5, "batch"))
    x = torch.randn(2, 9, D_MODEL)
    value, gate = module.pointwise_in(x).split(D_MODEL, dim=-1)
    y = nn.functional.pad(value * torch.sigmoid(gate), (0, 0, 2, 2))
    kernel = module.depthwise.weight[:, 0]
    y = sum(y[:, k : k + 9] * kernel[:, k] for k in range(5)) + module.depthwise.bias
    norm = module.norm
    y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    y = y * norm.weight + norm.bias
    expected = module.pointwise_out(y * torch.sigmoid(y))
    torch.testing.assert_close(module(x, None), expected, atol=1e-5, rtol=1e-5)


@each_norm
def test_convolution_reaches_half_a_kernel_to_both_sides(conv_norm):
    module = scrambled(ConvolutionModule(D_MODEL, 5, conv_norm))
    x = torch.randn(1, 11, D_MODEL)
    changed = x.clone()
    changed[:, 5] += torch.randn(D_MODEL)
    moved = (module(x, None) != module(changed, None)).any(dim=-1).flatten()
    assert moved.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


def test_block_is_the_sum_that_the_paper_writes():
    block = scrambled(ConformerBlock(D_MODEL, 4, 24, 7))
    x = torch.randn(2, 10, D_MODEL)
    norms = block.norms
    y = x + block.ffn_in(norms[0](x)) / 2
    y = y + block.attention(norms[1](y), None)
    y = y + block.convolution(norms[2](y), None)
    y = norms[4](y + block.ffn_out(norms[3](y)) / 2)
    torch.testing.assert_close(block(x, None), y)


# Encoder


@each_subsampling
@each_norm
@pytest.mark.parametrize("multi_scale", [False, True])
def test_encoder_padded_equals_alone(subsampling, conv_norm, multi_scale):
    model = encoder(subsampling, conv_norm=conv_norm, multi_scale=multi_scale)
    feats, lens = padded_batch()
    frames, mask = model(feats, lens)
    assert frames.shape[2] == model.output_size
    alone = [model(r[None, :n])[0] for r, n in zip(feats, COUNTS, strict=True)]
    assert_padded_equals_alone(frames, mask, alone)


@each_subsampling
def test_encoder_pads_further_without_effect(subsampling):
    model = encoder(subsampling)
    feats, lens = padded_batch()
    longer = torch.cat([feats, torch.full((len(COUNTS), 37, N_MELS), -7.0)], dim=1)
    frames, mask = model(longer, lens * feats.shape[1] / longer.shape[1])
    expected, expected_mask = model(feats, lens)
    torch.testing.assert_close(
        frames[mask], expected[expected_mask], atol=1e-5, rtol=1e-5
    )


@each_norm
def test_batch_neighbours_and_order_do_not_matter(conv_norm):
    model = encoder(conv_norm=conv_norm)
    feats, lens = padded_batch()
    frames, mask = model(feats, lens)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved, moved_mask = model(feats[order], lens[order])
    assert torch.equal(moved_mask, mask[order])
    torch.testing.assert_close(moved, frames[order], atol=1e-5, rtol=1e-5)

    feats[0] = torch.randn_like(feats[0])
    changed, _ = model(feats, lens)
    torch.testing.assert_close(changed[1:], frames[1:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(changed[0], frames[0], atol=1e-3)


def test_full_lengths_need_no_mask():
    model = encoder()
    feats = torch.randn(3, 40, N_MELS)
    frames, mask = model(feats, torch.ones(3))
    expected, _ = model(feats, None)
    assert mask is None
    assert torch.equal(frames, expected)


@pytest.mark.parametrize("multi_scale", [False, True])
def test_every_block_sees_the_block_before_it(multi_scale):
    model = encoder(n_blocks=4, multi_scale=multi_scale)
    feats = torch.randn(1, 40, N_MELS)

    def outputs_of_all_blocks():
        outputs = []
        hooks = [
            block.register_forward_hook(lambda _, __, out: outputs.append(out))
            for block in model.blocks
        ]
        model(feats)
        for hook in hooks:
            hook.remove()
        return outputs

    before = outputs_of_all_blocks()
    for k in range(1, 4):
        gradients = torch.autograd.grad(
            before[k].square().sum(),
            list(model.blocks[k - 1].parameters()),
            retain_graph=True,
        )
        assert all(gradient.abs().max() > 0 for gradient in gradients)

        disturb = model.blocks[k - 1].register_forward_hook(
            lambda _, __, out: out + torch.linspace(-1, 1, D_MODEL)
        )
        after = outputs_of_all_blocks()
        disturb.remove()
        for earlier in range(k - 1):
            assert torch.equal(after[earlier], before[earlier])
        assert (after[k] - before[k]).abs().max() > 1e-2


def test_multi_scale_lays_the_blocks_side_by_side():
    model = encoder(n_blocks=3, multi_scale=True)
    inputs, outputs = [], []
    model.norm.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: outputs.append(out))
    frames, _ = model(torch.randn(2, 40, N_MELS))
    slices = inputs[0].split(D_MODEL, dim=-1)
    assert len(slices) == len(outputs) == 3
    for part, output in zip(slices, outputs, strict=True):
        assert torch.equal(part, output)
    assert frames.shape[2] == model.output_size == 3 * D_MODEL


def test_single_scale_is_the_last_block_alone():
    model = encoder(n_blocks=3, multi_scale=False)
    outputs = []
    model.blocks[-1].register_forward_hook(lambda _, __, out: outputs.append(out))
    frames, _ = model(torch.randn(2, 40, N_MELS))
    assert torch.equal(frames, outputs[0])
    assert model.output_size == D_MODEL


@each_subsampling
def test_shortest_utterance(subsampling):
    model = encoder(subsampling)
    least = model.subsampling.min_frames
    for n_frames in (least, least + 1):
        frames, _ = model(torch.randn(2, n_frames, N_MELS))
        assert frames.shape[1] >= 1
        assert frames.isfinite().all()
        lens = torch.tensor([n_frames / 40, 1.0])
        frames, mask = model(torch.randn(2, 40, N_MELS), lens)
        assert mask[0].any()
        assert frames.isfinite().all()

    message = f"an utterance has {least - 1} frames, the minimum is {least}"
    with pytest.raises(RuntimeError, match=message):
        model(torch.randn(2, least - 1, N_MELS))
    with pytest.raises(RuntimeError, match=message):
        lens = torch.tensor([1.0, (least - 1) / 40])
        model(torch.randn(2, 40, N_MELS), lens)


@each_norm
def test_training_with_padding_gives_every_parameter_a_finite_gradient(conv_norm):
    model = encoder(conv_norm=conv_norm, dropout=0.1).train()
    frames, mask = model(*padded_batch())
    frames[mask].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_every_dropout_has_its_rate_and_takes_part():
    """After the subsampling; in each block after attention and convolution and twice
    in both feed-forwards."""
    model = encoder(dropout=0.3, n_blocks=2).train()
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    assert [layer.p for layer in layers] == (1 + 2 * 6) * [0.3]
    used = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: used.append(layer))
    model(*padded_batch())
    assert len(used) == len(layers) and {*used} == {*layers}


# Arguments and sizes


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ConvSubsampling(N_MELS, D_MODEL, factor=8), "factor is 8"),
        (lambda: SelfAttention(18, 4), "d_model 18 .* 4 heads"),
        (lambda: SelfAttention(12, 4), "d_model 12 .* 4 heads"),
        (lambda: ConvolutionModule(D_MODEL, 4), "kernel_size 4 is not odd"),
        (lambda: ConvolutionModule(D_MODEL, 5, "group"), "norm is 'group'"),
        (lambda: ConformerBlock(D_MODEL, 4, 24, 5, "none"), "norm is 'none'"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_feed_forward_maps_each_frame_alone():
    layer = scrambled(FeedForward(D_MODEL, 24))
    x = torch.randn(2, 5, D_MODEL)
    torch.testing.assert_close(layer(x)[1, 3], layer(x[1, 3]))


def test_feed_forward_is_two_linear_maps_with_a_swish_between():
    layer = scrambled(FeedForward(D_MODEL, 24))
    into, out = (part for part in layer.modules() if isinstance(part, nn.Linear))
    x = torch.randn(2, 5, D_MODEL)
    hidden = x @ into.weight.T + into.bias
    expected = (hidden * torch.sigmoid(hidden)) @ out.weight.T + out.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_parameter_count_of_the_reference_system():
    def linear(n_in, n_out):
        return n_in * n_out + n_out

    mels, factor, d, d_ffn, kernel, emb = 64, 8, 32, 64, 5, 2048
    norm = 2 * d  # weight and bias, of either kind
    feed_forward = linear(d, d_ffn) + linear(d_ffn, d)
    attention = 3 * linear(d, d) + linear(d, d)  # query, key, value; output
    depthwise = d * kernel + d
    convolution = linear(d, 2 * d) + depthwise + norm + linear(d, d)
    block = 2 * feed_forward + attention + convolution + 5 * norm
    subsampling = linear(factor * mels, d)
    projection = linear(2 * d, 32) + linear(32, emb)
    expected = subsampling + 2 * block + projection
    assert expected == 118_784

    model = SpeakerEmbedder(
        ConformerEncoder(
            mels,
            partial(StackSubsampling, factor=factor),
            d,
            n_blocks=2,
            n_heads=4,
            d_ffn=d_ffn,
            kernel_size=kernel,
            conv_norm="batch",
            multi_scale=False,
        ),
        StatisticsPooling,
        partial(BottleneckProjection, hidden_size=32, emb_dim=emb),
    )
    assert sum(p.numel() for p in model.parameters()) == expected


def test_crops_of_one_length_are_compiled_once():
    torch.manual_seed(0)
    encoder = ConformerEncoder(
        N_MELS, SUBSAMPLINGS["conv 1/4"], D_MODEL, n_blocks=2, d_ffn=16
    )
    counter = CompileCounter()
    compiled = torch.compile(encoder, backend=counter)
    counts = []
    for _ in range(3):
        feats, lens = torch.randn(4, 41, N_MELS), torch.ones(4)
        frames, mask = compiled(feats, lens)
        assert mask is None
        torch.testing.assert_close(frames, encoder(feats, lens)[0])
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] == counts[2]
    # Little is left out of the graphs: one break, where the lengths are looked at.
    assert counts[0] == 2
    with torch.compiler.set_stance("eager_on_recompile"):  # as while it validates
        assert compiled(torch.randn(4, 57, N_MELS), torch.ones(4))[0].shape[1] == 15
    assert counter.frame_count == 2


def test_the_blocks_side_by_side_are_normalised_together():
    subsampling = partial(ConvSubsampling, factor=2, channels=4)
    encoder = ConformerEncoder(20, subsampling, 16, n_blocks=3, n_heads=2).eval()
    for number, block in enumerate(encoder.blocks):  # as training may leave them
        nn.init.constant_(block.norms[4].weight, 3.0 + number)
    frames, _ = encoder(5 * torch.randn(2, 40, 20))
    torch.testing.assert_close(
        frames.mean(dim=-1), torch.zeros(2, 20), atol=1e-5, rtol=0
    )
    deviation = frames.std(dim=-1, unbiased=False)
    torch.testing.assert_close(deviation, torch.ones(2, 20), atol=1e-3, rtol=0)
