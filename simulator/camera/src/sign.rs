//! The classes: which traffic signs the camera shows.

use std::fmt;

/// A traffic sign, one class of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sign {
    /// White bicycle on blue: cycle track.
    Bicycle,
    /// Two running figures in a red triangle.
    Children,
    /// Figure in a white triangle on blue: pedestrian crossing.
    Crossing,
    /// Arrow bending left in a red triangle.
    CurveLeft,
    /// Arrow bending right in a red triangle.
    CurveRight,
    /// White arrow to the lower right on blue.
    KeepRight,
    /// White bar on red.
    NoEntry,
    /// Red car beside a black one in a red ring.
    NoOvertaking,
    /// Red stroke across blue.
    NoParking,
    /// White P on blue.
    Parking,
    /// Yellow diamond with a white edge.
    PriorityRoad,
    /// Figure with a shovel in a red triangle.
    Roadworks,
    /// Three white arrows in a circle on blue.
    Roundabout,
    /// Skidding car in a red triangle.
    Slippery,
    /// 30 in a red ring.
    Speed30,
    /// 50 in a red ring.
    Speed50,
    /// 80 in a red ring.
    Speed80,
    /// The word STOP on a red octagon.
    Stop,
    /// Red, yellow and green lamps in a red triangle.
    TrafficLights,
    /// Red triangle standing on its tip.
    Yield,
}

impl Sign {
    /// Every sign in class order, which is the alphabetical order of the labels.
    pub const ALL: &[Self] = &[
        Self::Bicycle,
        Self::Children,
        Self::Crossing,
        Self::CurveLeft,
        Self::CurveRight,
        Self::KeepRight,
        Self::NoEntry,
        Self::NoOvertaking,
        Self::NoParking,
        Self::Parking,
        Self::PriorityRoad,
        Self::Roadworks,
        Self::Roundabout,
        Self::Slippery,
        Self::Speed30,
        Self::Speed50,
        Self::Speed80,
        Self::Stop,
        Self::TrafficLights,
        Self::Yield,
    ];

    /// The class name, in lower case with underscores.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Bicycle => "bicycle",
            Self::Children => "children",
            Self::Crossing => "crossing",
            Self::CurveLeft => "curve_left",
            Self::CurveRight => "curve_right",
            Self::KeepRight => "keep_right",
            Self::NoEntry => "no_entry",
            Self::NoOvertaking => "no_overtaking",
            Self::NoParking => "no_parking",
            Self::Parking => "parking",
            Self::PriorityRoad => "priority_road",
            Self::Roadworks => "roadworks",
            Self::Roundabout => "roundabout",
            Self::Slippery => "slippery",
            Self::Speed30 => "speed_30",
            Self::Speed50 => "speed_50",
            Self::Speed80 => "speed_80",
            Self::Stop => "stop",
            Self::TrafficLights => "traffic_lights",
            Self::Yield => "yield",
        }
    }

    /// The place of this class in [`Sign::ALL`], from 0.
    pub const fn class(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_order_is_the_order_of_labels() {
        assert!(Sign::ALL.windows(2).all(|pair| pair[0].label() < pair[1].label()));
        assert!(Sign::ALL.iter().enumerate().all(|(class, sign)| sign.class() == class));
    }
}
