"""Reading model facts from where models are kept: a folder, or the Hugging Face Hub. Metadata only, never weights."""
