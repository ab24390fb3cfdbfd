// Package ctl is the local control socket of meshd: HTTP with JSON bodies on
// a unix socket that only the daemon's user can reach.
//
//	GET    /v1/about            About: which daemon answers
//	GET    /v1/status           Status
//	GET    /v1/routes           Routes
//	GET    /v1/matrix           overlay.Matrix
//	POST   /v1/matrix/hosts     HostsRequest  -> overlay.HostMatrix
//	POST   /v1/ping             PingRequest   -> Ping, one probe to every gateway meant
//	POST   /v1/tickets          TicketRequest -> Ticket
//	POST   /v1/grants           GrantRequest  -> Grant: a member may announce more
//	GET    /v1/routesets        RouteSets
//	GET    /v1/routesets/NAME   RouteSet
//	PUT    /v1/routesets/NAME   {"announce": […], "lan": [{"prefix": …, "via": …}]} -> RouteSet
//	DELETE /v1/routesets/NAME   -> RouteSet that was
//	GET    /v1/events           a stream of overlay.Event, one JSON object a line
//
// An error is a status of 400 or above with the body {"error": …, "hint": …}.
// Every other body has a "version", which grows when a field changes its
// meaning or goes away; new fields may appear at any time.
package ctl
