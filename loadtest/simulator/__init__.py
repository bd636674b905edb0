"""An embedded vLLM: `engine` (pure, clock passed in), `presets` (data), `server` (its API in real time)."""
