def pytest_ignore_collect(collection_path, config):
    """Skip gpu_tests here: they need the simulated GPU, so `test_simulated` runs them in other processes."""
    if "gpu_tests" in collection_path.parts and not config.pluginmanager.hasplugin("tests.simulator.plugin"):
        return True
    return None
