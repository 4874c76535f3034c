"""Fine-tuning: DreamBooth, and LoRAs."""
