"""An attack of your own, for simulations. Test it: astrofed plugins --plugin docs/templates/my_attack.py --test"""

from astrofed.shared.plan import Positive, Section
from astrofed.simulations.attack import Attack, Forgery, Scene


class Lazy(Attack):
    """Sends the global model back, moved by a small share of its own update, and claims to have worked."""

    class Options(Section):
        """`share`: how much of the honest update is sent."""

        share: Positive = 0.01

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._share = options.share

    def forge(self, scene: Scene) -> Forgery:
        """Return the global model with a share of the honest update."""
        return Forgery(scene.moved(lambda name: self._share * scene.update(scene.own, name)), scene.metrics)
