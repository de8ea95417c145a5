"""What is recorded of every system at every frame, and what follows from it."""

from dataclasses import dataclass

import numpy as np
from ase import units

from mlff.errors import InputError
from mlff.trajectory.layout import Array


@dataclass(frozen=True, kw_only=True)
class Series:
    """Energies of a run, frame by frame.

    Attributes:
        times_fs: (n_frames,), fs.
        energy: potential energy, (n_frames, n_systems), eV.
        kinetic: kinetic energy, (n_frames, n_systems), eV.
        heat: energy put in by thermostat and barostat, (n_frames, n_systems), eV.
        dof: degrees of freedom of the kinetic energy, (n_systems,).
        states: the (charge, multiplicity) whose energies were recorded beside the own.
        state_energies: these energies, (n_frames, n_systems, n_states), eV.
    """

    times_fs: Array
    energy: Array
    kinetic: Array
    heat: Array
    dof: Array
    states: tuple[tuple[int, int], ...]
    state_energies: Array

    @property
    def conserved(self) -> Array:
        """Potential + kinetic − heat, (n_frames, n_systems), eV: constant if exact."""
        return self.energy + self.kinetic - self.heat

    @property
    def temperature(self) -> Array:
        """2 E_kin / (N_f k_B), (n_frames, n_systems), K; 0 without freedom."""
        dof = np.where(self.dof > 0, self.dof, np.inf)
        return 2.0 * self.kinetic / (units.kB * dof)

    def gaps(self, upper: tuple[int, int], lower: tuple[int, int]) -> Array:
        """Return E(upper) − E(lower) of each geometry, (n_frames, n_systems), eV.

        Args:
            upper: (charge, multiplicity), among :attr:`states`.
            lower: likewise.

        Raises:
            InputError: a state that was not recorded.
        """
        for state in (upper, lower):
            if tuple(state) not in self.states:
                raise InputError(
                    f"(charge, multiplicity) = {tuple(state)} was not recorded; "
                    f"recorded are {list(self.states)}: MDOptions(states=...)"
                )
        first, second = (self.states.index(tuple(s)) for s in (upper, lower))
        return self.state_energies[..., first] - self.state_energies[..., second]
