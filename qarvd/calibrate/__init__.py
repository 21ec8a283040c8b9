"""What a model does on calibration prompts: its inputs layer by layer, and how much each chunk matters."""
