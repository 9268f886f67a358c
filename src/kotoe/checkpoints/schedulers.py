"""diffusers' scheduler classes and their configurations to a ScheduleSpec and back."""

from __future__ import annotations

from kotoe.checkpoints.keys import DIFFUSERS_VERSION, Config, Keys, make_spec
from kotoe.errors import CheckpointError, UserError, nearest
from kotoe.schedule import VARIANCE_EXPLODING
from kotoe.spec import ScheduleSpec

_SCHEDULE: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
_SIGMAS = {"use_exponential_sigmas": False, "use_beta_sigmas": False}
_SOLVER = {
    **_SIGMAS,
    "solver_order": 2,
    "thresholding": False,
    "lower_order_final": True,
    "use_flow_sigmas": False,
    "final_sigmas_type": "zero",
    "use_dynamic_shifting": False,
}
# class: (sampler, defaults that differ, keys with one implemented value: the class's default and that value)
SCHEDULERS: dict[str, tuple[str, Config, Config]] = {
    "PNDMScheduler": ("pndm", {"timestep_spacing": "leading", "set_alpha_to_one": False}, {"skip_prk_steps": True}),
    "DDIMScheduler": (
        "ddim",
        {"timestep_spacing": "leading", "set_alpha_to_one": True, "rescale_betas_zero_snr": False},
        {"thresholding": False},
    ),
    "LMSDiscreteScheduler": ("lms", {"use_karras_sigmas": False}, _SIGMAS),
    "HeunDiscreteScheduler": (
        "heun",
        {"beta_start": 0.00085, "beta_end": 0.012, "use_karras_sigmas": False},
        {**_SIGMAS, "clip_sample": False},
    ),
    "EulerDiscreteScheduler": (
        "euler",
        {"use_karras_sigmas": False, "rescale_betas_zero_snr": False},
        {
            **_SIGMAS,
            "interpolation_type": "linear",
            "timestep_type": "discrete",
            "final_sigmas_type": "zero",
            "sigma_min": None,
            "sigma_max": None,
        },
    ),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", {"rescale_betas_zero_snr": False}, {}),
    "DPMSolverMultistepScheduler": (
        "dpmpp_2m",
        {"use_karras_sigmas": False, "rescale_betas_zero_snr": False, "algorithm_type": "dpmsolver++"},
        {**_SOLVER, "solver_type": "midpoint", "euler_at_final": False, "use_lu_lambdas": False, "variance_type": None},
    ),
    "UniPCMultistepScheduler": (
        "unipc",
        {"use_karras_sigmas": False, "rescale_betas_zero_snr": False},
        {
            **_SOLVER,
            "predict_x0": True,
            "solver_type": "bh2",
            "disable_corrector": [],
            "solver_p": None,
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
        },
    ),
}
# diffusers keeps the keys of the class a scheduler was made from, and some matter only beside others that we refuse.
_ANY_SCHEDULER = tuple(
    dict.fromkeys(key for _, other, fixed in SCHEDULERS.values() for key in (*other, *fixed))
) + tuple(
    "clip_sample clip_sample_range dynamic_thresholding_ratio flow_shift lambda_min_clipped sample_max_value "
    "time_shift_type trained_betas".split()
)
ALGORITHMS = {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}


def schedule_spec(
    config: Config, kind: str, where: str = "scheduler/scheduler_config.json"
) -> tuple[ScheduleSpec, str | None, list[str]]:
    """ScheduleSpec, grid ("karras" or None for the spec's own) and notes of a scheduler of class `kind`."""
    if kind not in SCHEDULERS:
        near = nearest(kind, SCHEDULERS)
        raise CheckpointError(
            f"{where}: scheduler {kind!r}",
            allowed=", ".join(SCHEDULERS),
            hint=f"Did you mean {near!r}?" if near else "Another sampler can be chosen when drawing",
        )
    sampler, differing, fixed = SCHEDULERS[kind]
    defaults = {**_SCHEDULE, "trained_betas": None, **differing, **fixed}
    if kind == "PNDMScheduler":
        defaults["skip_prk_steps"] = False
    keys = Keys(config, defaults, where, _ANY_SCHEDULER)
    keys.fixed(trained_betas=None, **fixed)
    if "algorithm_type" in differing:
        sampler = ALGORITHMS[keys.choice("algorithm_type", *ALGORITHMS)]
    offset, spacing, notes = keys.whole("steps_offset", 1000, 0), keys["timestep_spacing"], []
    if offset != 1 and spacing == "leading":
        # Not ours: StableDiffusionPipeline has done so to every folder since 2022.
        notes.append(f"{where}: steps_offset {offset} is read as 1, as diffusers' Stable Diffusion pipeline does")
        offset = 1
    spec: ScheduleSpec = make_spec(
        lambda: ScheduleSpec(
            num_train_timesteps=keys.whole("num_train_timesteps", 100_000, 2),
            beta_start=keys.number("beta_start"),
            beta_end=keys.number("beta_end"),
            beta_schedule=keys["beta_schedule"],
            prediction_type=keys["prediction_type"],
            timestep_spacing=spacing,
            steps_offset=offset,
            rescale_betas_zero_snr="rescale_betas_zero_snr" in differing and keys.flag("rescale_betas_zero_snr"),
            set_alpha_to_one="set_alpha_to_one" in differing and keys.flag("set_alpha_to_one"),
            sampler=sampler,
        ),
        where,
    )
    karras = "use_karras_sigmas" in differing and keys.flag("use_karras_sigmas")
    grid = "karras" if karras else None
    if (reason := drawn_otherwise(spec, grid)) is not None:
        notes.append(f"{where}: diffusers draws other pictures from the same noise: {reason}")
    return spec, grid, notes


def schedule_config(spec: ScheduleSpec, grid: str | None = None) -> tuple[str, Config]:
    """The scheduler class for model_index.json, and its scheduler_config.json, of a ScheduleSpec."""
    algorithm = {ours: theirs for theirs, ours in ALGORITHMS.items()}.get(spec.sampler)
    name = "dpmpp_2m" if algorithm else spec.sampler
    found = [kind for kind, (sampler, _, _) in SCHEDULERS.items() if sampler == name]
    if not found:
        allowed = [*(s for s, _, _ in SCHEDULERS.values()), "dpmpp_2m_sde"]
        raise UserError(f"sampler {spec.sampler!r} has no diffusers scheduler", allowed=", ".join(allowed))
    kind = found[0]
    _, differing, fixed = SCHEDULERS[kind]
    if spec.rescale_betas_zero_snr and "rescale_betas_zero_snr" not in differing:
        able = sorted(s for s, d, _ in SCHEDULERS.values() if "rescale_betas_zero_snr" in d)
        raise UserError(f"{kind} knows no zero terminal SNR", allowed=f"a default sampler of {', '.join(able)}")
    if spec.steps_offset != 1 and spec.timestep_spacing == "leading":
        raise UserError(
            f"steps_offset {spec.steps_offset} with timestep_spacing leading",
            allowed="steps_offset 1; diffusers' Stable Diffusion pipeline reads any other as 1",
        )
    if grid not in (None, "karras", spec.timestep_spacing):
        raise UserError(
            f"default grid {grid!r} over a schedule with timestep_spacing {spec.timestep_spacing!r}",
            allowed="the same in both, or karras",
        )
    if grid == "karras" and "use_karras_sigmas" not in differing:
        raise UserError(f"{kind} has no grid 'karras'", allowed="a default sampler that has, or no default grid")
    config: Config = {
        "_class_name": kind,
        "_diffusers_version": DIFFUSERS_VERSION,
        **{key: getattr(spec, key) for key in _SCHEDULE},
        "trained_betas": None,
        **{key: getattr(spec, key) for key in ("set_alpha_to_one", "rescale_betas_zero_snr") if key in differing},
        **({"use_karras_sigmas": grid == "karras"} if "use_karras_sigmas" in differing else {}),
        **({"algorithm_type": algorithm} if algorithm else {}),
        **({"clip_sample": False} if kind == "DDIMScheduler" else {}),
        **fixed,
    }
    return kind, config


def drawn_otherwise(spec: ScheduleSpec, grid: str | None = None) -> str | None:
    """Why stock diffusers, with this default sampler, ends at other latents than we do (docs/numerics.md); or None."""
    if spec.sampler == "pndm" and spec.prediction_type == "v_prediction":
        return "its PNDM averages the velocities of several timesteps, which is not the mean of their noises"
    if grid == "karras" and spec.sampler in VARIANCE_EXPLODING and spec.timestep_spacing != "linspace":
        return f"its karras grid spans only the timesteps of its {spec.timestep_spacing} grid; linspace spans them all"
    return None
