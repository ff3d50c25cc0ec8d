"""Python reads this first when its folder is on PYTHONPATH: the time of the first optimizer step is written down.

Nothing of the pipeline is imported sooner for it, and nothing changes in it but one method; the process then ends.
"""

import os
import sys
import time


class AtFirstStep:
    """Waits for the stepper to be imported, and wraps its call."""

    def find_spec(self, name, path=None, target=None):
        if name != "pipeline.engine.stepper":
            return None
        sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            step = module.Stepper.__call__

            def stamped(stepper):
                step(stepper)
                with open(os.environ["FIRST_STEP"], "w") as file:
                    file.write(repr(time.time()))
                os._exit(0)

            module.Stepper.__call__ = stamped

        spec.loader.exec_module = exec_module
        return spec


if "FIRST_STEP" in os.environ:
    sys.meta_path.insert(0, AtFirstStep())
