"""`fuse` on models that nobody here wrote: torchvision's, and one of every Hugging Face configuration."""
