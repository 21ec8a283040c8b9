"""The shipped workflows: what is wired to what, and where it stands. tools/build_workflows.py writes them."""

from __future__ import annotations

from workflow_parts import EXPORTED, FULL, LATER_PROMPT, QUANTIZED, TEXT, Node, Out, encoders, note, video

DEMO_SIZE = {"width": 32, "height": 32}
RESULT = "output/diffusion_models"

WORKFLOWS: dict[str, dict[str, Node]] = {
    "demo": {
        "note": note(
            (40, -220),
            (660, 180),
            "## The whole job on the bundled model\n\nPress **Run**: no download, no GPU. It takes a minute or "
            "two.\n\n1. *Calibrate* generates clips of 24 prompts and measures how much each chunk matters.\n2. "
            "*Dual-Scale Quantize* gives its linears 4-bit weights.\n3. Both models stream the same digit from the "
            f"same noise.\n4. *Compare Videos* says what quantizing changed. The quantized file is in `{RESULT}`.",
        ),
        "demo": Node("QarvdDemoModel", (40, 20), {}, (300, 220)),
        "prompts": Node("QarvdEncodePrompts", (40, 300), {"clip": Out("demo", 3), "limit": 24}, (300, 190)),
        "calibrate": Node(
            "QarvdCalibrate", (380, 20), {"model": Out("demo"), "prompts": Out("prompts"), **DEMO_SIZE}, (320, 270)
        ),
        "recipe": Node("QarvdRecipe", (380, 350), {}, (320, 280)),
        "sensitivity": Node("QarvdFrameSensitivity", (740, 560), {"statistics": Out("calibrate")}, (460, 440)),
        "quantize": Node(
            "QarvdQuantize",
            (740, 20),
            {"model": Out("demo"), "recipe": Out("recipe"), "statistics": Out("calibrate")},
            (460, 480),
        ),
        "save": Node("QarvdSaveModel", (1240, 720), {"model": Out("quantize"), "name": "demo-w4a8"}, (320, 120)),
        "full": Node(
            "QarvdStream",
            (1240, 20),
            {"model": Out("demo"), "positive": Out("demo", 1), "seed": 1, **DEMO_SIZE},
            (340, 640),
            "Stream in full precision",
        ),
        "quantized": Node(
            "QarvdStream",
            (1620, 20),
            {"model": Out("quantize"), "positive": Out("demo", 1), "seed": 1, **DEMO_SIZE},
            (340, 640),
            "Stream with 4-bit weights",
        ),
        "full frames": Node("VAEDecode", (2000, 20), {"samples": Out("full"), "vae": Out("demo", 2)}, (220, 60)),
        "quantized frames": Node(
            "VAEDecode", (2000, 130), {"samples": Out("quantized"), "vae": Out("demo", 2)}, (220, 60)
        ),
        "compare": Node(
            "QarvdCompare",
            (2000, 250),
            {
                "reference": Out("full frames"),
                "other": Out("quantized frames"),
                "chunk_frames": 3,
                "first_chunk_frames": 0,
            },
            (460, 520),
        ),
        "animation": Node(
            "SaveAnimatedWEBP",
            (2000, 830),
            {"images": Out("quantized frames"), "filename_prefix": "qarvd-demo", "fps": 8.0},
            (320, 380),
        ),
    },
    "demo-sampler": {
        "note": note(
            (40, -190),
            (620, 150),
            "## Streaming with ComfyUI's own sampling nodes\n\nPress **Run**: no download. *Streaming AR Sampler* is a "
            "SAMPLER; *AR Schedule* gives the sigmas. The latents of the demo model are 8 x 8, so the empty latent is "
            "set to 64 x 64 for its 32 x 32 pixels. A length of 81, as Wan counts frames, is 21 latent frames: 7 "
            "chunks.",
        ),
        "demo": Node("QarvdDemoModel", (40, 20), {"digit": "3", "direction": "up right"}, (300, 220)),
        "guider": Node("BasicGuider", (380, 20), {"model": Out("demo"), "conditioning": Out("demo", 1)}, (300, 60)),
        "noise": Node("RandomNoise", (380, 130), {"noise_seed": 5}, (300, 90)),
        "schedule": Node("QarvdSchedule", (40, 300), {"family": "demo"}, (300, 210)),
        "sampler": Node("QarvdSampler", (380, 270), {"schedule": Out("schedule", 1)}, (320, 520)),
        "empty": Node(
            "EmptyHunyuanLatentVideo", (40, 610), {"width": 64, "height": 64, "length": 81, "batch_size": 1}, (300, 140)
        ),
        "sample": Node(
            "SamplerCustomAdvanced",
            (740, 20),
            {
                "noise": Out("noise"),
                "guider": Out("guider"),
                "sampler": Out("sampler"),
                "sigmas": Out("schedule"),
                "latent_image": Out("empty"),
            },
            (320, 330),
        ),
        "frames": Node("VAEDecode", (740, 410), {"samples": Out("sample"), "vae": Out("demo", 2)}, (320, 60)),
        "animation": Node(
            "SaveAnimatedWEBP",
            (1100, 20),
            {"images": Out("frames"), "filename_prefix": "qarvd-demo-sampler", "fps": 8.0},
            (320, 380),
        ),
    },
    "quantize-self-forcing": {
        "note": note(
            (40, -200),
            (690, 160),
            "## Quantize Self-Forcing to 4-bit weights\n\nPut the files into their folders (the loaders link to them) "
            "and press **Run**. This takes half an hour, most of it in *Calibrate*. What it measured is kept, so a "
            "second run, a restart or another recipe starts from there. With more *budget_minutes* it uses more of the "
            f"24 prompts, and the model gets better. The result is in `{RESULT}`; press **R** to see it in the "
            "loaders.",
        ),
        "model": Node("QarvdLoadModel", (40, 20), {"file": FULL, "family": "self-forcing"}, (330, 110)),
        **encoders(40, 190, prompt=False),
        "prompts": Node("QarvdEncodePrompts", (40, 360), {"clip": Out("clip"), "limit": 24}, (330, 190)),
        "calibrate": Node("QarvdCalibrate", (410, 20), {"model": Out("model"), "prompts": Out("prompts")}, (330, 270)),
        "sensitivity": Node("QarvdFrameSensitivity", (780, 560), {"statistics": Out("calibrate")}, (480, 440)),
        "recipe": Node("QarvdRecipe", (410, 350), {}, (330, 280)),
        "quantize": Node(
            "QarvdQuantize",
            (780, 20),
            {"model": Out("model"), "recipe": Out("recipe"), "statistics": Out("calibrate")},
            (480, 480),
        ),
        "save": Node(
            "QarvdSaveModel",
            (1300, 20),
            {"model": Out("quantize"), "name": QUANTIZED.removesuffix(".safetensors")},
            (330, 120),
        ),
    },
    "stream-quantized": {
        "note": note(
            (40, -190),
            (690, 150),
            "## Stream a quantized model\n\nChoose a file that *Save Quantized Model* wrote, or a full-precision one "
            "with its family. With a *window*, memory stays the same for any number of *chunks*. An int8 or int4 "
            "*cache* takes less of it.",
        ),
        "model": Node("QarvdLoadModel", (40, 20), {"file": QUANTIZED}, (330, 110)),
        **encoders(40, 190),
        "vae": Node("VAELoader", (40, 560), {"vae_name": TEXT["vae"]}, (330, 60)),
        "stream": Node(
            "QarvdStream",
            (410, 20),
            {"model": Out("model"), "positive": Out("text"), "window": 12, "sink": 3, "cache": "int8"},
            (420, 720),
        ),
        "frames": Node("VAEDecode", (870, 20), {"samples": Out("stream"), "vae": Out("vae")}, (250, 60)),
        **video("frames", 870, 140, "stream"),
    },
    "change-prompt": {
        "note": note(
            (40, -190),
            (690, 150),
            "## Several scenes in one stream\n\n*Change Prompt* switches to the second prompt at chunk 8. Chain more "
            "of them for more scenes. LongLive is trained for this. With other families change little at a time, and "
            "repeat in each prompt what stays.",
        ),
        "model": Node("QarvdLoadModel", (40, 20), {"file": QUANTIZED}, (330, 110)),
        **encoders(40, 190),
        "second text": Node(
            "CLIPTextEncode", (40, 550), {"clip": Out("clip"), "text": LATER_PROMPT}, (330, 150), "Second prompt"
        ),
        "vae": Node("VAELoader", (40, 760), {"vae_name": TEXT["vae"]}, (330, 60)),
        "change": Node("QarvdChangePrompt", (410, 550), {"positive": Out("second text"), "chunk": 8}, (330, 110)),
        "stream": Node(
            "QarvdStream",
            (780, 20),
            {
                "model": Out("model"),
                "positive": Out("text"),
                "changes": Out("change"),
                "chunks": 14,
                "window": 12,
                "sink": 3,
                "cache": "int8",
            },
            (420, 740),
        ),
        "frames": Node("VAEDecode", (1240, 20), {"samples": Out("stream"), "vae": Out("vae")}, (250, 60)),
        **video("frames", 1240, 140, "scenes"),
    },
    "compare-full-and-quantized": {
        "note": note(
            (40, -180),
            (690, 140),
            "## What did quantizing change?\n\nBoth models stream the same prompt from the same noise; *Compare "
            "Videos* shows PSNR and SSIM of every frame, and whether the error grows from chunk to chunk (drift).",
        ),
        "full": Node(
            "QarvdLoadModel", (40, 20), {"file": FULL, "family": "self-forcing"}, (330, 110), "Full precision"
        ),
        "quantized": Node("QarvdLoadModel", (40, 190), {"file": QUANTIZED}, (330, 110), "Quantized"),
        **encoders(40, 360),
        "vae": Node("VAELoader", (40, 730), {"vae_name": TEXT["vae"]}, (330, 60)),
        "stream full": Node(
            "QarvdStream",
            (410, 20),
            {"model": Out("full"), "positive": Out("text"), "seed": 1},
            (400, 680),
            "Full precision",
        ),
        "stream quantized": Node(
            "QarvdStream",
            (840, 20),
            {"model": Out("quantized"), "positive": Out("text"), "seed": 1},
            (400, 680),
            "Quantized",
        ),
        "full frames": Node("VAEDecode", (1280, 20), {"samples": Out("stream full"), "vae": Out("vae")}, (250, 60)),
        "quantized frames": Node(
            "VAEDecode", (1280, 130), {"samples": Out("stream quantized"), "vae": Out("vae")}, (250, 60)
        ),
        "compare": Node(
            "QarvdCompare",
            (1280, 250),
            {"reference": Out("full frames"), "other": Out("quantized frames")},
            (480, 520),
        ),
    },
    "image-to-video": {
        "note": note(
            (40, -180),
            (690, 140),
            "## An image that comes to life\n\nThe text-to-video model continues from the image, which is encoded and "
            "put into the cache as the first frame. Describe the motion in the prompt.",
        ),
        "model": Node("QarvdLoadModel", (40, 20), {"file": QUANTIZED}, (330, 110)),
        **encoders(40, 190),
        "vae": Node("VAELoader", (40, 560), {"vae_name": TEXT["vae"]}, (330, 60)),
        "image": Node("LoadImage", (40, 680), {"image": "example.png"}, (330, 330)),
        "stream": Node(
            "QarvdStream",
            (410, 20),
            {"model": Out("model"), "positive": Out("text"), "vae": Out("vae"), "start_image": Out("image")},
            (420, 720),
        ),
        "frames": Node("VAEDecode", (870, 20), {"samples": Out("stream"), "vae": Out("vae")}, (250, 60)),
        **video("frames", 870, 140, "image"),
    },
    "stock-nodes-only": {
        "note": note(
            (40, -190),
            (690, 150),
            "## An export that needs no custom nodes\n\nQuantize with the recipe *stock W4A8* and save: the file then "
            "runs in ComfyUI 0.31 or later as it is, with its own loader and its *Sampler AR Video*, on machines that "
            "don't have this pack. (*stock int8* runs in 0.27, too.)",
        ),
        "model": Node("UNETLoader", (40, 20), {"unet_name": EXPORTED}, (330, 90)),
        "shift": Node("ModelSamplingSD3", (410, 20), {"model": Out("model"), "shift": 5.0}, (300, 70)),
        **encoders(40, 170),
        "vae": Node("VAELoader", (40, 540), {"vae_name": TEXT["vae"]}, (330, 60)),
        "empty": Node("EmptyARVideoLatent", (410, 150), {}, (300, 140)),
        "sampler": Node("SamplerARVideo", (410, 350), {"num_frame_per_block": 3}, (300, 60)),
        "noise": Node("RandomNoise", (410, 470), {"noise_seed": 1}, (300, 90)),
        "sigmas": Node("ManualSigmas", (410, 620), {"sigmas": "1.0, 0.9375, 0.8333, 0.625, 0.0"}, (300, 60)),
        "guider": Node("BasicGuider", (760, 20), {"model": Out("shift"), "conditioning": Out("text")}, (300, 60)),
        "sample": Node(
            "SamplerCustomAdvanced",
            (760, 140),
            {
                "noise": Out("noise"),
                "guider": Out("guider"),
                "sampler": Out("sampler"),
                "sigmas": Out("sigmas"),
                "latent_image": Out("empty"),
            },
            (300, 330),
        ),
        "frames": Node("VAEDecode", (1110, 20), {"samples": Out("sample"), "vae": Out("vae")}, (250, 60)),
        **video("frames", 1110, 140, "stock"),
    },
}
