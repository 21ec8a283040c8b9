"""The bundled demo: a small causal Wan model of moving handwritten digits, its prompts, pixels and judge."""
