"""Deep or wide, at equal training FLOPs and about equal parameters in the blocks?

lm sweep --config experiments/sweeps/depth_vs_width.py --workdir runs/depth_vs_width

Small setting, 3 seeds: 2 x 192 and 8 x 96 are both 0.9 % worse than 4 x 128 (95 % intervals 0.4 to 1.3, 0.5 to 1.3).
"""

from lm.sweep.algebra import Sweep, chain, named, seeds


def shape(layers: int, width: int):
    heads = {"model.num_heads": width // 32}
    return named(f"{layers} x {width}", {"model.num_layers": layers, "model.d_model": width, **heads})


def get_sweep():
    return Sweep(
        config="small.py",
        variants=chain(shape(2, 192), shape(4, 128), shape(8, 96)),
        baseline="4 x 128",
        match="flops",
        seeds=seeds(3),
    )
