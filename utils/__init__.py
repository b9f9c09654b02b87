"""Seeding, run folder, checkpoint, results, optimisers and schedules. Imports nothing of the project."""
