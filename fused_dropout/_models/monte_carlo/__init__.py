"""Monte Carlo dropout: uncertainty from dropout that stays on (Gal and Ghahramani 2016)."""

from __future__ import annotations

from fused_dropout._models.monte_carlo.prediction import mc_predict
from fused_dropout._models.monte_carlo.statistics import MCPrediction
from fused_dropout._models.monte_carlo.switching import mc_dropout

__all__ = ["MCPrediction", "mc_dropout", "mc_predict"]
