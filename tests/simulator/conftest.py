def pytest_ignore_collect(collection_path, config):
    """What needs the simulated GPU itself runs in the processes that `test_simulated` starts."""
    if "gpu_tests" in collection_path.parts and not config.pluginmanager.hasplugin("tests.simulator.plugin"):
        return True
    return None
