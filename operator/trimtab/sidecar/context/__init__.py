"""What happens to prompts that are longer than the model's window: count, plan, rewrite, and say so."""
